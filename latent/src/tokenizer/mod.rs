//! CLIP's tokenizer: from a prompt to the numbers of its tokens.
//!
//! ```text
//! NFC, runs of white space as one space, small letters
//! words, contractions, single digits and runs of other signs, each in UTF-8
//! bytes joined in the order of the merges, the last one marked by </w>          Sennrich et al. 2016, arXiv:1508.07909
//! <|startoftext|>, at most 75 tokens, <|endoftext|>, and what fills up to 77
//! ```
//!
//! The steps are carried out by the library that transformers uses, set up as its `CLIPTokenizer` sets it up.

mod files;

pub use files::TokenizerFiles;

use serde_json::{Value, json};
use tokenizers::AddedToken;

use crate::LatentError;

/// How CLIP divides a text before bytes are joined.
const SPLIT: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokens of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The number of each token, as many as [`Tokenizer::length`] says: the beginning, the prompt, the end, and what fills up.
    pub ids: Vec<u32>,
    /// Tokens before those that fill up: the beginning, the prompt and the end.
    pub used: usize,
    /// The part of the prompt that was cut off because there was no room for it.
    pub cut_off: Option<String>,
}

/// A tokenizer of prompts.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    begin: u32,
    end: u32,
    fill: u32,
    length: usize,
}

impl Tokenizer {
    /// A tokenizer from the contents of the files of a directory.
    ///
    /// `tokenizer.json` is taken where it is there, otherwise `vocab.json` and `merges.txt`; of the former only vocabulary,
    /// merges and added tokens count, as in transformers. Special tokens are those of `tokenizer_config.json` or, unless it has
    /// `added_tokens_decoder`, of `special_tokens_map.json`. Without a `pad_token` texts are filled up with the end.
    ///
    /// # Errors
    /// If a file is missing or not as expected; the message names it.
    pub fn new(files: &TokenizerFiles<'_>) -> Result<Self, LatentError> {
        let parts = files.read()?;
        let description = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": parts.unknown,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>",
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": parts.vocabulary,
                "merges": parts.merges,
            },
        });
        let refuse = |problem: String| LatentError::Tokenizer {
            file: parts.file,
            problem,
            remedy: "fetch the files of the tokenizer again",
        };
        if let Some(missing) = parts.missing() {
            let what =
                format!("the vocabulary has neither {missing:?} nor {:?} for what it does not know", parts.unknown);
            return Err(refuse(what));
        }
        let mut inner: tokenizers::Tokenizer =
            description.to_string().parse().map_err(|e: tokenizers::Error| refuse(e.to_string()))?;
        let added: Vec<AddedToken> = parts.added.into_iter().map(Into::into).collect();
        inner.add_tokens(added).map_err(|e| refuse(e.to_string()))?;
        let id = |token: &str| inner.token_to_id(token).ok_or_else(|| refuse(format!("there is no token {token}")));
        let (begin, end, fill) = (id(&parts.begin)?, id(&parts.end)?, id(&parts.fill)?);
        Ok(Self { inner, begin, end, fill, length: parts.length })
    }

    /// Tokens of every text, those that fill up included: 77 for all published models.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The token that begins every text.
    pub fn begin(&self) -> u32 {
        self.begin
    }

    /// The token that ends every text.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The token that fills up a text.
    pub fn fill(&self) -> u32 {
        self.fill
    }

    /// The tokens of a prompt, which may be empty. What does not fit is left out, and reported.
    ///
    /// # Errors
    /// If the library cannot divide the prompt, of which no example is known.
    ///
    /// Verified by `prompts_have_the_tokens_of_python`. Verified by `what_is_cut_off_is_reported`.
    pub fn encode(&self, prompt: &str) -> Result<Tokens, LatentError> {
        let encoding = self.inner.encode(prompt, false).map_err(|e| LatentError::Parameter {
            operation: "dividing a prompt into tokens",
            what: "the prompt".into(),
            expected: "text".into(),
            found: format!("{prompt:?} ({e})"),
            remedy: "write it otherwise",
        })?;
        let (ids, room) = (encoding.get_ids(), self.length - 2);
        let cut_off = encoding.get_offsets().get(room).map(|(start, _)| {
            // A token may begin inside of a character, which then is cut in two.
            let start = (0..=*start).rev().find(|i| prompt.is_char_boundary(*i)).unwrap_or(0);
            prompt[start..].to_owned()
        });
        let mut tokens = vec![self.begin];
        tokens.extend(ids.iter().take(room));
        tokens.push(self.end);
        let used = tokens.len();
        tokens.resize(self.length, self.fill);
        Ok(Tokens { ids: tokens, used, cut_off })
    }

    /// The tokens of a prompt as they are written in the vocabulary, without the beginning and the end and however many there
    /// are.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn pieces(&self, prompt: &str) -> Result<Vec<String>, LatentError> {
        let ids = self.encode(prompt)?;
        let name = |id: &u32| self.inner.id_to_token(*id).unwrap_or_else(|| id.to_string());
        Ok(ids.ids[1..ids.used - 1].iter().map(name).collect())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { begin, end, fill, length, .. } = self;
        f.debug_struct("Tokenizer")
            .field("begin", begin)
            .field("end", end)
            .field("fill", fill)
            .field("length", length)
            .finish_non_exhaustive()
    }
}

impl From<files::Special> for AddedToken {
    fn from(token: files::Special) -> Self {
        Self {
            content: token.content,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized.unwrap_or(!token.special),
            special: token.special,
        }
    }
}

/// What a value of a JSON file is, for messages.
fn kind(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| value.to_string().chars().take(60).collect())
}
