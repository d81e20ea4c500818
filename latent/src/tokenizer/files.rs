//! Vocabulary, merges and special tokens out of the files of a tokenizer.

use serde_json::{Map, Value};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::kind;
use crate::LatentError;

/// The contents of the files in a tokenizer's directory, each if it is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: Option<&'a str>,
    /// `vocab.json`.
    pub vocabulary: Option<&'a str>,
    /// `merges.txt`.
    pub merges: Option<&'a str>,
    /// `special_tokens_map.json`.
    pub special_tokens: Option<&'a str>,
    /// `tokenizer_config.json`.
    pub config: Option<&'a str>,
    /// `added_tokens.json`.
    pub added_tokens: Option<&'a str>,
}

/// A token that is found in a prompt before it is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Special {
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    /// Whether it is found in the normalised prompt, or in the prompt as it was written; special tokens are found there where
    /// no file says otherwise.
    pub normalized: Option<bool>,
    pub special: bool,
}

impl Special {
    /// A token of which nothing but its text is known.
    fn plain(content: &str, special: bool) -> Self {
        let content = content.to_owned();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: None, special }
    }

    fn from_json(value: &Value, special: Option<bool>) -> Option<Self> {
        let map = value.as_object()?;
        let content = map.get("content")?.as_str()?;
        let flag = |key: &str| map.get(key).map_or(Some(false), Value::as_bool);
        let special = special.map_or_else(|| flag("special"), Some)?;
        Some(Self {
            single_word: flag("single_word")?,
            lstrip: flag("lstrip")?,
            rstrip: flag("rstrip")?,
            normalized: map.get("normalized").and_then(Value::as_bool),
            ..Self::plain(content, special)
        })
    }
}

/// What a tokenizer is made of.
pub(super) struct Parts {
    /// The file that vocabulary and merges are from.
    pub file: &'static str,
    pub vocabulary: Map<String, Value>,
    pub merges: Vec<Value>,
    pub begin: String,
    pub end: String,
    pub unknown: String,
    pub fill: String,
    /// Tokens to be added, in order.
    pub added: Vec<Special>,
    pub length: usize,
}

impl Parts {
    /// The first of the tokens that the vocabulary needs and lacks: every byte's sign, within a word and at its end, unless there is
    /// the unknown token, which then stands for it.
    pub(super) fn missing(&self) -> Option<String> {
        let has = |token: &String| self.vocabulary.contains_key(token);
        if has(&self.unknown) {
            return None;
        }
        let signs = ByteLevel::alphabet().into_iter().flat_map(|sign| [sign.to_string(), format!("{sign}</w>")]);
        signs.filter(|token| !has(token)).min()
    }
}

/// A file, and vocabulary and merges as it has them.
type Lists = (&'static str, Map<String, Value>, Vec<Value>);

const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CONFIG: &str = "tokenizer_config.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// The length of a text where no file says it.
const LENGTH: usize = 77;

/// The roles of special tokens, in the order in which transformers adds them; CLIP uses the first five.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

fn refuse(file: &'static str, problem: String) -> LatentError {
    LatentError::Tokenizer { file, problem, remedy: "fetch the files of the tokenizer again" }
}

/// A JSON object.
fn object(file: &'static str, text: &str) -> Result<Map<String, Value>, LatentError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(refuse(file, format!("it should hold an object, found {}", kind(Some(&other))))),
        Err(e) => Err(refuse(file, format!("it is no JSON ({e})"))),
    }
}

/// A special token in a role: text alone, or with its properties.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Text(String),
    Token(Special),
}

impl Named {
    fn content(&self) -> &str {
        match self {
            Self::Text(content) => content,
            Self::Token(token) => &token.content,
        }
    }

    fn into_special(self) -> Special {
        match self {
            Self::Text(content) => Special::plain(&content, true),
            Self::Token(token) => Special { special: true, ..token },
        }
    }
}

impl TokenizerFiles<'_> {
    pub(super) fn read(&self) -> Result<Parts, LatentError> {
        let tokenizer = self.tokenizer.map(|text| object(TOKENIZER, text)).transpose()?;
        let config = self.config.map(|text| object(CONFIG, text)).transpose()?.unwrap_or_default();
        let (file, vocabulary, merges) = match &tokenizer {
            Some(tokenizer) => of_tokenizer(tokenizer)?,
            None => self.of_lists()?,
        };
        let mut added = self.added(&config, tokenizer.as_ref())?;
        let named = self.named(&config, &added)?;
        // In Python a text and a token with properties are never the same, so that a token may be added in two forms, of
        // which the second replaces the first.
        let mut new: Vec<Named> = Vec::new();
        let known = |token: &Named, new: &[Named]| {
            added.iter().any(|known| known.content == token.content()) || new.contains(token)
        };
        for token in named.iter().flatten() {
            if !known(token, &new) {
                new.push(token.clone());
            }
        }
        // Flags of added tokens are kept, but a token in a role is special.
        for token in &mut added {
            token.special |= named.iter().flatten().any(|named| named.content() == token.content);
        }
        added.extend(new.into_iter().map(Named::into_special));
        let role = |i: usize, default: &str| named[i].as_ref().map_or(default, Named::content).to_owned();
        let end = role(1, "<|endoftext|>");
        Ok(Parts {
            file,
            vocabulary,
            merges,
            begin: role(0, "<|startoftext|>"),
            unknown: role(2, "<|endoftext|>"),
            fill: role(4, "<|endoftext|>"),
            end,
            added,
            length: length(&config)?,
        })
    }

    /// Vocabulary and merges of `vocab.json` and `merges.txt`.
    fn of_lists(&self) -> Result<Lists, LatentError> {
        let missing = |file| LatentError::Tokenizer {
            file,
            problem: "it is missing".into(),
            remedy: "fetch vocab.json and merges.txt, or tokenizer.json",
        };
        let vocabulary = object(VOCABULARY, self.vocabulary.ok_or_else(|| missing(VOCABULARY))?)?;
        check_numbers(VOCABULARY, &vocabulary)?;
        let lines = self.merges.ok_or_else(|| missing(MERGES))?.lines().enumerate();
        let merges =
            lines.filter(|(_, line)| !line.starts_with("#version") && !line.trim().is_empty()).map(|(i, line)| {
                match line.split_once(' ').filter(|(_, second)| !second.contains(' ')) {
                    Some((first, second)) => Ok(Value::from(vec![first, second])),
                    None => Err(refuse(MERGES, format!("line {} should be two tokens, found {line:?}", i + 1))),
                }
            });
        Ok((VOCABULARY, vocabulary, merges.collect::<Result<_, _>>()?))
    }

    /// The tokens that a file lists as added, in the order of their numbers.
    fn added(
        &self,
        config: &Map<String, Value>,
        tokenizer: Option<&Map<String, Value>>,
    ) -> Result<Vec<Special>, LatentError> {
        let mut added: Vec<(u64, Special)> = Vec::new();
        let mut insert = |id: u64, token: Special| match added.iter_mut().find(|(known, _)| *known == id) {
            Some(known) => known.1 = token,
            None => added.push((id, token)),
        };
        match config.get("added_tokens_decoder") {
            Some(Value::Object(tokens)) => {
                for (id, token) in tokens {
                    let parsed = id.parse().ok().zip(Special::from_json(token, None));
                    let Some((id, token)) = parsed else {
                        let problem =
                            format!("`added_tokens_decoder.{id}` should be a token, found {}", kind(Some(token)));
                        return Err(refuse(CONFIG, problem));
                    };
                    insert(id, token);
                }
            }
            Some(other) => {
                let problem = format!("`added_tokens_decoder` should be an object, found {}", kind(Some(other)));
                return Err(refuse(CONFIG, problem));
            }
            None => {
                if let Some(text) = self.added_tokens {
                    let roles = self.named(config, &[])?;
                    for (content, id) in object(ADDED_TOKENS, text)? {
                        let Some(id) = id.as_u64() else {
                            let problem = format!("the number of {content} should be whole, found {}", kind(Some(&id)));
                            return Err(refuse(ADDED_TOKENS, problem));
                        };
                        let special = roles.iter().flatten().any(|role| role.content() == content);
                        insert(id, Special::plain(&content, special));
                    }
                }
                let tokens = tokenizer.and_then(|tokenizer| tokenizer.get("added_tokens")).and_then(Value::as_array);
                for token in tokens.into_iter().flatten() {
                    let parsed = token.get("id").and_then(Value::as_u64).zip(Special::from_json(token, None));
                    let Some((id, token)) = parsed else {
                        return Err(refuse(
                            TOKENIZER,
                            format!("`added_tokens` should be tokens, found {}", kind(Some(token))),
                        ));
                    };
                    insert(id, token);
                }
            }
        }
        added.sort_by_key(|(id, _)| *id);
        Ok(added.into_iter().map(|(_, token)| token).collect())
    }

    /// The special tokens by their roles.
    fn named(&self, config: &Map<String, Value>, added: &[Special]) -> Result<[Option<Named>; 7], LatentError> {
        let map = match self.special_tokens {
            Some(text) if !config.contains_key("added_tokens_decoder") => Some(object(SPECIAL_TOKENS, text)?),
            _ => None,
        };
        // Those of Python's class.
        let mut named = ROLES.map(|role| match role {
            "bos_token" => Some(Named::Text("<|startoftext|>".into())),
            "eos_token" | "unk_token" | "pad_token" => Some(Named::Text("<|endoftext|>".into())),
            _ => None,
        });
        for (role, named) in ROLES.into_iter().zip(&mut named) {
            let of_map = map.as_ref().and_then(|map| map.get(role));
            let (file, value) = match of_map {
                Some(value) => (SPECIAL_TOKENS, value),
                None => match config.get(role) {
                    Some(value) => (CONFIG, value),
                    None => continue,
                },
            };
            *named = match value {
                Value::Null => None,
                Value::String(text) => Some(Named::Text(text.clone())),
                value => match Special::from_json(value, of_map.map(|_| true)) {
                    Some(token) => Some(Named::Token(token)),
                    None => {
                        return Err(refuse(file, format!("`{role}` should be a token, found {}", kind(Some(value)))));
                    }
                },
            };
        }
        for named in named.iter_mut().flatten() {
            // A token that is listed with its properties has them in its roles, too.
            if let Some(token) = added.iter().find(|token| token.content == named.content()) {
                *named = Named::Token(token.clone());
            }
        }
        Ok(named)
    }
}

/// Vocabulary and merges of `tokenizer.json`.
fn of_tokenizer(tokenizer: &Map<String, Value>) -> Result<Lists, LatentError> {
    let part = |key: &str| tokenizer.get("model").and_then(|model| model.get(key));
    let Some(Value::Object(vocabulary)) = part("vocab") else {
        return Err(refuse(TOKENIZER, format!("`model.vocab` should be an object, found {}", kind(part("vocab")))));
    };
    check_numbers(TOKENIZER, vocabulary)?;
    let Some(Value::Array(merges)) = part("merges") else {
        return Err(refuse(TOKENIZER, format!("`model.merges` should be a list, found {}", kind(part("merges")))));
    };
    let merge = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(first, second)| Value::from(vec![first, second])),
        Value::Array(pair) if pair.len() == 2 && pair.iter().all(Value::is_string) => Some(merge.clone()),
        _ => None,
    };
    let pair = |m: &Value| {
        merge(m).ok_or_else(|| {
            refuse(TOKENIZER, format!("`model.merges` should be pairs of tokens, found {}", kind(Some(m))))
        })
    };
    Ok((TOKENIZER, vocabulary.clone(), merges.iter().map(pair).collect::<Result<_, _>>()?))
}

fn check_numbers(file: &'static str, vocabulary: &Map<String, Value>) -> Result<(), LatentError> {
    let whole = |value: &Value| value.as_u64().is_some_and(|id| u32::try_from(id).is_ok());
    match vocabulary.iter().find(|(_, id)| !whole(id)) {
        _ if vocabulary.is_empty() => Err(refuse(file, "the vocabulary is empty".into())),
        Some((token, id)) => Err(refuse(file, format!("the number of {token:?} should be whole, found {id}"))),
        None => Ok(()),
    }
}

/// The length of a text: `model_max_length`. Where it is longer than any text encoder takes, it stands for no length at all.
fn length(config: &Map<String, Value>) -> Result<usize, LatentError> {
    match config.get("model_max_length") {
        None | Some(Value::Null) => Ok(LENGTH),
        Some(value) => match value.as_f64() {
            Some(length) if length > 1e6 => Ok(LENGTH),
            Some(length) if length >= 2.0 && length.fract() == 0.0 => Ok(length as usize),
            _ => Err(refuse(CONFIG, format!("`model_max_length` should be a whole number from 2, found {value}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;

    const VOCAB: &str =
        r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}"#;

    fn files() -> TokenizerFiles<'static> {
        TokenizerFiles { vocabulary: Some(VOCAB), merges: Some("#version: 0.2\na b</w>\n"), ..Default::default() }
    }

    #[test]
    fn without_further_files_the_tokens_are_those_of_the_class() {
        let parts = files().read().unwrap();
        assert_eq!([&*parts.begin, &*parts.end, &*parts.fill], ["<|startoftext|>", "<|endoftext|>", "<|endoftext|>"]);
        assert_eq!((parts.length, parts.merges.len()), (77, 1));
        assert_eq!(parts.added, [Special::plain("<|startoftext|>", true), Special::plain("<|endoftext|>", true)]);
    }

    #[test]
    fn a_map_of_special_tokens_wins_over_the_config() {
        let config = r#"{"pad_token": "<|endoftext|>", "model_max_length": 9}"#;
        let map = r#"{"pad_token": "!", "eos_token": {"content": "b", "normalized": true, "lstrip": false}}"#;
        let parts = TokenizerFiles { config: Some(config), special_tokens: Some(map), ..files() }.read().unwrap();
        assert_eq!((&*parts.fill, &*parts.end, parts.length), ("!", "b", 9));
        let config = r#"{"pad_token": "a", "added_tokens_decoder": {"0": {"content": "a", "special": false}}}"#;
        let parts = TokenizerFiles { config: Some(config), special_tokens: Some(map), ..files() }.read().unwrap();
        assert_eq!((&*parts.fill, &*parts.end), ("a", "<|endoftext|>"));
        assert_eq!(parts.added[0], Special::plain("a", true));
    }

    #[test]
    fn problems_name_the_file() {
        for (files, expected) in [
            (TokenizerFiles::default(), "vocab.json: it is missing; fetch vocab.json and merges.txt"),
            (TokenizerFiles { merges: None, ..files() }, "merges.txt: it is missing"),
            (TokenizerFiles { merges: Some("#version\na b c"), ..files() }, "merges.txt: line 2 should be two tokens"),
            (TokenizerFiles { vocabulary: Some("[]"), ..files() }, "vocab.json: it should hold an object, found []"),
            (TokenizerFiles { vocabulary: Some("{\"a\": -1}"), ..files() }, "vocab.json: the number of \"a\""),
            (TokenizerFiles { tokenizer: Some("{}"), ..files() }, "tokenizer.json: `model.vocab` should be an object"),
            (TokenizerFiles { config: Some("{\"pad_token\": 3}"), ..files() }, "tokenizer_config.json: `pad_token`"),
            (TokenizerFiles { config: Some("{\"model_max_length\": 1}"), ..files() }, "`model_max_length`"),
            (TokenizerFiles { special_tokens: Some("{"), ..files() }, "special_tokens_map.json: it is no JSON"),
        ] {
            let message = files.read().map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let missing = Tokenizer::new(&TokenizerFiles { vocabulary: Some("{\"a\": 0}"), ..files() });
        assert!(missing.is_err());
    }

    /// Unknown signs become the unknown token; a vocabulary without it must know every byte, or is refused.
    #[test]
    fn every_prompt_has_tokens_or_the_vocabulary_is_refused() {
        let with = |vocabulary: &Map<String, Value>| {
            let text = serde_json::to_string(vocabulary).unwrap();
            Tokenizer::new(&TokenizerFiles { vocabulary: Some(&text), merges: Some(""), ..files() })
        };
        let mut vocabulary: Map<String, Value> = serde_json::from_str(VOCAB).unwrap();
        let unknown = with(&vocabulary).unwrap().encode("aé").unwrap();
        assert_eq!((&unknown.ids[..5], unknown.used), (&[5, 0, 6, 6, 6][..], 5));
        vocabulary.remove("<|endoftext|>");
        let message = with(&vocabulary).unwrap_err().to_string();
        let expected =
            r#"vocab.json: the vocabulary has neither "!" nor "<|endoftext|>" for what it does not know; fetch"#;
        assert!(message.contains(expected), "{message}");
        for (i, sign) in ByteLevel::alphabet().into_iter().enumerate() {
            vocabulary.insert(sign.to_string(), (2 * i).into());
            vocabulary.insert(format!("{sign}</w>"), (2 * i + 1).into());
        }
        assert_eq!(with(&vocabulary).unwrap().encode("aé").unwrap().used, 5);
        vocabulary.remove("~</w>");
        assert!(with(&vocabulary).unwrap_err().to_string().contains(r#"neither "~</w>" nor"#));
    }
}
