//! Any bytes as the files of a tokenizer and a prompt: no panic, and as many tokens as the tokenizer says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_latent::{Tokenizer, TokenizerFiles};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // Files and prompt are told apart by a sign that none of them has any use for; what is empty is not there.
    let mut parts = text.split('\u{1}');
    let prompt = parts.next().unwrap_or_default();
    let mut file = || parts.next().filter(|text| !text.is_empty());
    let files = TokenizerFiles {
        vocabulary: file(),
        merges: file(),
        special_tokens: file(),
        config: file(),
        added_tokens: file(),
        tokenizer: file(),
    };
    let Ok(tokenizer) = Tokenizer::new(&files) else { return };
    for prompt in [prompt, "", "A cat's 2 hats"] {
        let tokens = tokenizer.encode(prompt).expect("a tokenizer divides every text");
        assert_eq!(tokens.ids.len(), tokenizer.length());
        assert!((2..=tokens.ids.len()).contains(&tokens.used));
        assert_eq!((tokens.ids[0], tokens.ids[tokens.used - 1]), (tokenizer.begin(), tokenizer.end()));
        assert!(tokens.ids[tokens.used..].iter().all(|id| *id == tokenizer.fill()));
        assert!(tokens.cut_off.is_none_or(|rest| prompt.ends_with(&rest) && tokens.used == tokens.ids.len()));
        assert_eq!(tokenizer.pieces(prompt).expect("its tokens").len(), tokens.used - 2);
    }
});
