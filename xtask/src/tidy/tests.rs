use super::{manifests, sources, texts};

fn messages(name: &str, text: &str) -> Vec<String> {
    sources::check(name, text).unwrap().into_iter().map(|f| f.message).collect()
}

#[test]
fn a_sampler_must_not_know_the_unet() {
    let manifest = "[lints]\nworkspace = true\n[dependencies]\ntweedie-unet.workspace = true\n".parse().unwrap();
    let findings = manifests::check_crate("samplers", "samplers/Cargo.toml", &manifest);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("samplers must not depend on unet"));
}

#[test]
fn versions_and_lints_come_from_the_root() {
    let manifest = "[dependencies]\nrayon = \"1\"\n".parse().unwrap();
    let findings = manifests::check_crate("kernels", "kernels/Cargo.toml", &manifest);
    assert_eq!(findings.len(), 2);
    assert_eq!(manifests::check_crate("new", "new/Cargo.toml", &manifest).len(), 1);
}

#[test]
fn unsafe_code_has_its_places_and_its_reasons() {
    let bare = "fn f() { unsafe { g() } }";
    assert_eq!(messages("train/src/a.rs", bare).len(), 2);
    assert_eq!(messages("kernels/src/a.rs", bare).len(), 1);
    assert_eq!(messages("kernels/src/a.rs", "// SAFETY: g is fine.\nfn f() { unsafe { g() } }").len(), 0);
    assert_eq!(messages("train/src/lib.rs", "//! x").len(), 1);
    assert_eq!(messages("train/src/lib.rs", "#![forbid(unsafe_code)]").len(), 0);
}

#[test]
fn files_and_printing_have_their_crates() {
    for text in ["use std::fs;", "fn f() { std::fs::read(p); }", "fn f() { File::open(p); }", "use std::fs::File;"] {
        assert_eq!(messages("train/src/a.rs", text).len(), 1, "{text}");
        assert_eq!(messages("data/src/a.rs", text).len(), 0, "{text}");
    }
    assert_eq!(messages("unet/src/a.rs", "fn f() { println!(); }").len(), 1);
    assert_eq!(messages("cli/src/a.rs", "fn f() { println!(); }").len(), 0);
    assert_eq!(messages("unet/src/a.rs", "#[cfg(test)] mod tests { fn f() { println!(); } }").len(), 0);
    assert_eq!(messages("unet/tests/a.rs", "use std::fs;").len(), 0);
    assert_eq!(messages("unet/examples/a/main.rs", "use std::fs;").len(), 0);
}

#[test]
fn predictions_are_told_apart_in_one_place() {
    let text = "fn f(p: Prediction) { match p { Prediction::Eps => 1, _ => 2 }; }";
    assert_eq!(messages("train/src/a.rs", text).len(), 1);
    assert_eq!(messages("schedule/src/prediction.rs", text).len(), 0);
}

#[test]
fn long_files_are_found_and_tests_do_not_count() {
    let long = "fn f() {}\n".repeat(601);
    assert_eq!(messages("unet/src/a.rs", &long).len(), 1);
    let tested = format!("fn g() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert_eq!(messages("unet/src/a.rs", &tested).len(), 0);
}

#[test]
fn machine_paths_are_found_and_look_alikes_are_not() {
    let path = format!("see /{}/somebody/x", "home");
    assert_eq!(texts::machine_paths("a.md", &path).len(), 1);
    assert_eq!(texts::machine_paths("a.md", "see docs/home/x").len(), 0);
    assert_eq!(texts::machine_paths("a.md", &format!("https://example.org/{}/x", "home")).len(), 0);
}

#[test]
fn links_are_read_outside_code_only() {
    let text = "[a](b.md) ![c](d.png \"title\")\n```\n[x](y)\n```\n<img src=\"e.png\">";
    let targets: Vec<String> = texts::links(text).into_iter().map(|(_, t)| t).collect();
    assert_eq!(targets, ["b.md", "d.png", "e.png"]);
}
