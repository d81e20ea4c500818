//! `tweedie study guidance`: its files, how it goes on, and what it refuses.

mod common;

use common::Bench;
use tweedie_data::{Dataset, Range, Split};

/// Few test and training images of MNIST as PNG files in the folder `digits`.
fn digits(bench: &Bench) {
    for (split, name, count) in [(Split::Test, "test", 60), (Split::Train, "train", 30)] {
        let data = Dataset::open("mnist", split).unwrap();
        let indices: Vec<usize> = (0..count).collect();
        let batch = data.batch(&indices, Range::MinusOneOne).unwrap();
        for (i, (image, label)) in batch.images.outer_iter().zip(&batch.labels).enumerate() {
            let pixel = |x: u32, y: u32| image::Luma([Range::MinusOneOne.to_byte(image[[0, y as usize, x as usize]])]);
            let folder = bench.path("digits").join(name).join(label.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            image::GrayImage::from_fn(28, 28, pixel).save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn a_study_writes_a_report_and_goes_on_where_it_was() {
    let bench = Bench::new();
    digits(&bench);
    let study =
        "study guidance --data digits --count 12 --runs ddim:2 --run ddim:2 --resamples 0 --kinds cfg --at-scale 1";
    bench.succeed(&format!("{study} --scales 0,1 --out s"));
    let files = ["s/report.md", "s/cells.csv", "s/grid-cfg-0.png", "s/grid-cfg-1.png"];
    let before = files.map(|file| bench.bytes(file));
    let plots = std::fs::read_dir(bench.path("s")).unwrap();
    let plots = plots.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "svg"));
    assert_eq!(plots.count(), 2);
    let text = String::from_utf8(bench.bytes("s/cells.csv")).unwrap();
    // A line about the study, the header, and one for each cell: the run at scale 1 is among the scales.
    let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|line| line.split(',').collect()).collect();
    let calls: Vec<[&str; 6]> = rows.iter().map(|row| [row[0], row[1], row[2], row[3], row[4], row[5]]).collect();
    assert_eq!(calls, [["cfg", "0", "ddim", "2", "12", "2"], ["cfg", "1", "ddim", "2", "12", "2"]], "{text}");
    // Again: nothing is measured, and the files are the same to the last byte, times included.
    let again = bench.run(&format!("{study} --scales 0,1 --out s"));
    assert!(again.code == 0 && again.stderr.contains("0 of them measured now"), "{}", again.stderr);
    assert_eq!(files.map(|file| bench.bytes(file)), before);
    // One more scale is measured alone.
    let more = bench.run(&format!("{study} --scales 0,1,3 --out s"));
    assert!(more.code == 0 && more.stderr.contains("3 cells, 1 of them measured now"), "{}", more.stderr);
    let longer = String::from_utf8(bench.bytes("s/cells.csv")).unwrap();
    assert!(longer.starts_with(&text) && longer.lines().count() == 5, "{longer}");
    bench.fail(&format!("{study} --scales 0,1 --out s --seed 7"), 1, &["another study", "seed 7", "--out"]);
    assert_eq!(bench.bytes("s/cells.csv"), longer.as_bytes());
    // A run that cannot be drawn is refused before any other is, whatever its place in the list.
    bench.fail("study guidance --data digits --count 12 --runs ddim:2,ddim:2000 --out t", 2, &["ddim", "2000", "1000"]);
    bench.fail("study guidance --judge nowhere --out t", 1, &["--judge", "nowhere"]);
    bench.fail("study guidance --run ddim --out t", 2, &["--run", "ddim:25"]);
}

#[test]
fn a_grid_that_is_asked_for_later_is_drawn_then() {
    let bench = Bench::new();
    digits(&bench);
    let study = "study guidance --data digits --count 10 --scales 0,1 --runs ddim:2 --run ddim:2 --resamples 0 --kinds cfg \
                 --at-scale 1 --out s";
    bench.succeed(&format!("{study} --show 0"));
    assert!(bench.path("s/grid-cfg-0.png").exists() && !bench.path("s/grid-cfg-1.png").exists());
    let more = bench.run(&format!("{study} --show 0,1"));
    assert!(more.code == 0 && more.stderr.contains("2 cells, 1 of them measured now"), "{}", more.stderr);
    let report = String::from_utf8(bench.bytes("s/report.md")).unwrap();
    for grid in ["grid-cfg-0.png", "grid-cfg-1.png"] {
        assert!(report.contains(grid) && bench.path(&format!("s/{grid}")).exists(), "{grid}");
    }
    // Each cell stands in the file once.
    assert_eq!(String::from_utf8(bench.bytes("s/cells.csv")).unwrap().lines().count(), 4);
}
