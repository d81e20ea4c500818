//! `tweedie verify`: the table, the document and what is refused.

mod common;

use common::Bench;
use serde_json::Value;

fn document(bench: &Bench, arguments: &str) -> Value {
    serde_json::from_str(&bench.succeed(arguments)).unwrap()
}

#[test]
fn every_identity_holds() {
    let bench = Bench::new();
    let found = document(&bench, "verify --json");
    assert_eq!((&found["passed"], &found["seed"], &found["cases"]), (&true.into(), &0.into(), &200.into()));
    let identities = found["identities"].as_array().unwrap();
    assert_eq!(found["identities_passed"].as_u64(), Some(identities.len() as u64));
    let mut formulas: Vec<&str> = identities.iter().map(|i| i["formula"].as_str().unwrap()).collect();
    formulas.dedup();
    let expected = [
        "1.1", "1.2", "1.3", "1.4", "2.1", "2.2", "2.3", "2.4", "2.5", "3.1", "3.2", "4.1", "4.2", "5.2", "5.3", "5.4",
        "5.5", "5.6", "6.1", "6.3",
    ];
    assert_eq!(formulas, expected);
    for identity in identities {
        let (worst, tolerance) =
            (identity["worst_residual"].as_f64().unwrap(), identity["tolerance"].as_f64().unwrap());
        assert!(worst <= tolerance && identity["passed"] == true, "{identity:#}");
        assert!(identity["cases"].as_u64().unwrap() >= 5);
        for key in ["id", "group", "equation", "source", "relative_to", "tolerance_because"] {
            assert!(identity[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {identity:#}");
        }
        assert!(identity["error"].is_null());
    }
    // A residual of exactly 0 everywhere would say that nothing was compared.
    let compared = identities.iter().filter(|i| i["worst_residual"].as_f64().unwrap() > 0.0).count();
    assert!(compared * 10 > identities.len() * 8, "{compared} of {}", identities.len());
}

#[test]
fn figures_are_those_of_the_seed() {
    let bench = Bench::new();
    let of = |options: &str| document(&bench, &format!("verify --cases 30 --json {options}"))["identities"].clone();
    assert_eq!(of("--only score,6.1-step --seed 5"), of("--only 6.1-step,score --seed 5 --threads 1"));
    assert_ne!(of("--only score --seed 5"), of("--only score --seed 6"));
    // A part of the run is that part of the whole.
    let (whole, part) = (of("--seed 5"), of("--only 2.1 --seed 5"));
    let of_whole: Vec<&Value> = whole.as_array().unwrap().iter().filter(|i| i["formula"] == "2.1").collect();
    assert_eq!(of_whole, part.as_array().unwrap().iter().collect::<Vec<_>>());
    assert_eq!(part.as_array().unwrap().len(), 3);
}

#[test]
fn the_table_has_a_line_for_each_identity() {
    let bench = Bench::new();
    let done = bench.run("verify --cases 3 --only guidance --explain");
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    for part in ["5.2-bayes", "5.6-implicit", "Dhariwal 2021", "tolerance", "holds", "relative to", "of seed 0"] {
        assert!(done.stdout.contains(part), "no {part} in {}", done.stdout);
    }
    assert!(!done.stdout.contains("2.1-bayes") && !done.stdout.contains("FAILS"));
    let count = done.stdout.matches("  holds\n").count();
    assert!(done.stdout.contains(&format!("\n{count} of {count} identities hold")), "{}", done.stdout);
}

#[test]
fn wrong_options_are_refused() {
    let bench = Bench::new();
    bench.fail("verify --only 9.9", 2, &["--only 9.9", "posterior", "2.1-bayes"]);
    bench.fail("verify --only 2.1,bayes", 2, &["--only bayes"]);
    bench.fail("verify --cases 0", 2, &["--cases", "1 to 1000000"]);
    bench.fail("verify --cases many", 2, &["--cases"]);
    bench.fail("verify --seed -1", 2, &["--seed"]);
    bench.fail("verify mnist", 2, &["mnist"]);
}
