//! The tokenizer against transformers, on the files of `tools/reference/golden_clip.py`.

use serde_json::Value;
use tweedie_latent::{Tokenizer, TokenizerFiles};

mod common;
use common::{json, text};

fn tokenizer(name: &str) -> Tokenizer {
    let file = |file: &str| text(&format!("tokenizer/{name}/{file}"));
    let [tokenizer, vocabulary, merges, special_tokens, config] =
        ["tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"].map(file);
    Tokenizer::new(&TokenizerFiles {
        tokenizer: tokenizer.as_deref(),
        vocabulary: vocabulary.as_deref(),
        merges: merges.as_deref(),
        special_tokens: special_tokens.as_deref(),
        config: config.as_deref(),
        added_tokens: None,
    })
    .unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn prompts_have_the_tokens_of_python() {
    let cases = json("tokens.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 60);
    for name in ["first", "second", "fast"] {
        let tokenizer = tokenizer(name);
        assert_eq!(tokenizer.length(), 77);
        for case in cases {
            let prompt = case["prompt"].as_str().unwrap();
            let (expected, all) = (ids(&case[name]["ids"]), ids(&case[name]["all"]));
            let found = tokenizer.encode(prompt).unwrap();
            assert_eq!(found.ids, expected, "{name} {prompt:?}");
            assert_eq!(found.used, all.len().min(75) + 2, "{name} {prompt:?}");
            assert_eq!(found.cut_off.is_some(), all.len() > 75, "{name} {prompt:?}");
            assert_eq!(found.ids[0], tokenizer.begin());
            assert_eq!(found.ids[found.used - 1], tokenizer.end());
            assert!(found.ids[found.used..].iter().all(|id| *id == tokenizer.fill()));
        }
    }
    assert_eq!(tokenizer("first").fill(), tokenizer("first").end());
    assert_eq!(tokenizer("second").fill(), 0);
}

#[test]
fn what_is_cut_off_is_reported() {
    let tokenizer = tokenizer("first");
    let cut_off = |prompt: &str| tokenizer.encode(prompt).unwrap().cut_off;
    assert_eq!(cut_off("a photo of a cat"), None);
    let long = "The ".repeat(75);
    assert_eq!(cut_off(&long), None);
    // As it was written.
    assert_eq!(cut_off(&format!("{long}  END, Ende")).unwrap(), "END, Ende");
    // The last character that has room has it for two of four bytes, and is reported whole.
    let smiles = "a ".to_owned() + &"\u{1F40C}".repeat(40);
    let pieces = tokenizer.pieces("\u{1F40C}\u{1F40C}").unwrap();
    assert!(pieces.len() > 4, "{pieces:?}");
    let rest = cut_off(&smiles).unwrap();
    assert!(smiles.ends_with(&rest) && rest.starts_with('\u{1F40C}'));
}

#[test]
fn pieces_are_those_of_the_vocabulary() {
    let tokenizer = tokenizer("first");
    let pieces = tokenizer.pieces("A photo  of a CAT!").unwrap();
    assert_eq!(pieces.concat(), "a</w>photo</w>of</w>a</w>cat</w>!</w>");
    assert!(tokenizer.pieces("").unwrap().is_empty());
}
