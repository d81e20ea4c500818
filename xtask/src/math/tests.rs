use super::*;

fn math(library: &str, tests: &str) -> Math {
    let files = [("schedule/src/a.rs", library), ("schedule/tests/a.rs", tests)];
    Math::of(&files.map(|(name, text)| (name.to_owned(), text.to_owned()))).unwrap()
}

/// Findings about items, without those about numbers that nobody carries.
fn findings(library: &str, tests: &str) -> Vec<String> {
    let all = math(library, tests).findings();
    all.into_iter().filter(|f| f.place != PAGE).map(|f| format!("{} {}", f.place, f.message)).collect()
}

const TESTS: &str =
    "#[test] fn plain() {} proptest! { /// Doc.\n #[test] fn random(x in 0..3) { f(x) } fn helper() {} }";

#[test]
fn tests_are_found_in_functions_modules_and_proptest() {
    let text = format!(
        "{TESTS} fn no() {{}} #[cfg(test)] mod tests {{ #[test] fn inner() {{}} proptest! {{ #[test] fn deep() {{}} }} }}"
    );
    let found = scan::source("a.rs", &text).unwrap().tests;
    assert_eq!(found, ["plain", "random", "inner", "deep"]);
}

#[test]
fn an_equation_needs_a_test_that_exists() {
    let cited = "/// `x = y` (Ho 2020, eq. 4; FORMULAS 1.2).";
    assert_eq!(findings(&format!("{cited}\n///\n/// Verified by `random`.\npub fn f() {{}}"), TESTS), [""; 0]);
    let bare = findings(&format!("{cited}\npub fn f() {{}}"), TESTS);
    assert!(bare.len() == 1 && bare[0].contains("schedule/src/a.rs:1 f carries an equation"), "{bare:?}");
    let gone = findings(&format!("{cited} Verified by `helper`.\npub fn f() {{}}"), TESTS);
    assert!(gone.len() == 1 && gone[0].contains("`helper`, which is no test"), "{gone:?}");
    // Only what is public, and not what tests hold.
    assert_eq!(findings(&format!("{cited}\nfn f() {{}}"), TESTS), [""; 0]);
    assert_eq!(findings(&format!("#[cfg(test)] mod tests {{ {cited}\npub fn f() {{}} }}"), TESTS), [""; 0]);
    assert_eq!(findings(&format!("pub struct S; impl S {{ {cited}\npub fn f() {{}} }}"), TESTS).len(), 1);
    assert_eq!(findings("/// A name.\npub fn f() {}", TESTS), [""; 0]);
}

#[test]
fn an_item_says_which_equation_it_is() {
    let with = |header: &str, own: &str| {
        findings(&format!("//! About {header}.\n\n/// It is {own}. Verified by `plain`.\npub fn f() {{}}"), TESTS)
    };
    assert_eq!(with("FORMULAS 1.1", "x"), [""; 0]);
    assert_eq!(with("FORMULAS 1.1, 1.2", "FORMULAS 1.2"), [""; 0]);
    assert!(with("FORMULAS 1.1, 1.2", "x")[0].contains("say which one"));
    assert!(with("nothing", "FORMULAS 8.9")[0].contains("no FORMULAS 8.9"));
}

#[test]
fn numbers_are_read_as_lists_and_ranges() {
    for (text, expected) in [
        ("(FORMULAS 2.1 to 2.3).", vec!["2.1", "2.2", "2.3"]),
        ("FORMULAS 1.1, 1.3 and 1.4 of 9.9", vec!["1.1", "1.3", "1.4"]),
        ("(FORMULAS 4.1, `L_0`; Ho 2020, eq. 1.3)", vec!["4.1"]),
        ("FORMULAS 5.6. Verified by 3.1, FORMULAS 5.2; Ho", vec!["5.2", "5.6"]),
        ("section 2.1", vec![]),
    ] {
        assert_eq!(scan::numbers(text), expected, "{text}");
    }
}

#[test]
fn the_page_names_items_and_the_files_of_tests() {
    let library = "//! FORMULAS 1.2\n\n/// `|x|` of [`S`](crate::S), by Ho (2020, eq. 4). More.\n///\n/// Verified by `random`. Verified by `plain`.\npub fn f() {}";
    let page = math(library, TESTS).page();
    let row = "| [`schedule::f`](../schedule/src/a.rs) | `\\|x\\|` of `S`, by Ho (2020, eq. 4). | \
               [`random`](../schedule/tests/a.rs)<br>[`plain`](../schedule/tests/a.rs) |";
    assert!(page.contains(row), "{page}");
    assert!(page.contains("## 1.2 Marginal") && !page.contains("## 1.1"));
    // Equations that nothing carries are found.
    let missing = math(library, TESTS).findings();
    assert!(
        missing.iter().any(|f| f.message.contains("FORMULAS 3.1"))
            && !missing.iter().any(|f| f.message.contains("FORMULAS 1.2"))
    );
}

#[test]
fn identities_of_verify_are_read() {
    let text = "const I: &[Identity] = &[Identity { id: \"2.1-bayes\", cost: 1 }];";
    assert_eq!(scan::source("a.rs", text).unwrap().identities, ["2.1"]);
}
