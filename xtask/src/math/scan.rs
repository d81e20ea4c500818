//! What a Rust file says about equations and tests.

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A public item of a library.
#[derive(Debug)]
pub struct Item {
    /// `q_step`, `Posterior::mean`, `Clip::Dynamic`.
    pub name: String,
    pub line: usize,
    pub doc: String,
    /// The tests that its rustdoc names.
    pub verified_by: Vec<String>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Source {
    /// The rustdoc of the module itself.
    pub header: String,
    /// Public functions and types outside tests.
    pub items: Vec<Item>,
    /// Names of tests, those of proptest included.
    pub tests: Vec<String>,
    /// Numbers of the identities of `tweedie verify`.
    pub identities: Vec<String>,
}

/// Reads a file.
///
/// # Errors
/// If it is not Rust.
pub fn source(name: &str, text: &str) -> Result<Source> {
    let file = syn::parse_file(text).with_context(|| format!("{name} is not Rust"))?;
    let mut scan = Scan { source: Source { header: doc(&file.attrs), ..Source::default() }, ..Scan::default() };
    scan.visit_file(&file);
    Ok(scan.source)
}

/// The numbers after the word FORMULAS: `FORMULAS 1.1, 1.3 and 1.4` or `FORMULAS 2.1 to 2.3`.
pub fn numbers(doc: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (at, word) in doc.match_indices("FORMULAS ") {
        let mut range = false;
        for token in doc[at + word.len()..].split_whitespace() {
            let number = token.trim_end_matches([',', '.', ';', ':', ')', '(']);
            let parts =
                number.split_once('.').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
            match (parts, token) {
                (Some((chapter, last)), _) => {
                    let first = found.last().and_then(|n| n.rsplit('.').next()?.parse::<u32>().ok());
                    let from = if range { first.map_or(last, |first| first + 1) } else { last };
                    found.extend((from..=last).map(|n| format!("{chapter}.{n}")));
                    range = false;
                    if number.len() + 1 < token.len() || token.ends_with(['.', ')', ';', ':']) {
                        break;
                    }
                }
                (None, "to") => range = true,
                (None, "and") => {}
                _ => break,
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Whether rustdoc states an equation: it cites one, or holds one for KaTeX.
pub fn is_equation(doc: &str) -> bool {
    doc.contains("eq. ") || doc.contains("eqs. ") || doc.contains("$$") || doc.contains("FORMULAS ")
}

impl Item {
    /// The first sentence of the rustdoc, without links.
    pub fn summary(&self) -> String {
        let paragraph = self.doc.split("\n\n").next().unwrap_or_default().split_whitespace();
        let text = unlinked(&paragraph.collect::<Vec<_>>().join(" "));
        let text = text.split(" Verified by ").next().unwrap_or_default().to_owned();
        let end = text.match_indices(". ").map(|(at, _)| at + 1).find(|&at| !abbreviated(&text[..at]));
        text[..end.unwrap_or(text.len())].trim_end_matches(':').to_owned()
    }
}

/// Whether a text ends in an abbreviation and not in a sentence, or inside a code span or parentheses.
fn abbreviated(text: &str) -> bool {
    let open = text.matches('(').count() > text.matches(')').count();
    open || !text.matches('`').count().is_multiple_of(2) || text.ends_with("eq.") || text.ends_with("eqs.")
}

/// A text with `[a](b)` and ``[`a`]`` as `a`.
fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("[`") {
        let Some(length) = rest[at..].find("`]") else { break };
        out += &rest[..at];
        out += &rest[at + 1..at + length + 1];
        rest = &rest[at + length + 2..];
        if rest.starts_with('(')
            && let Some(end) = rest.find(')')
        {
            rest = &rest[end + 1..];
        }
    }
    out + rest
}

/// The rustdoc of attributes.
fn doc(attributes: &[syn::Attribute]) -> String {
    let mut doc = String::new();
    for attribute in attributes {
        if let syn::Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value
        {
            let line = text.value();
            doc += line.strip_prefix(' ').unwrap_or(&line);
            doc.push('\n');
        }
    }
    doc
}

/// The tests that rustdoc names: every "Verified by `test`".
fn verified_by(doc: &str) -> Vec<String> {
    const WORDS: &str = "Verified by `";
    doc.match_indices(WORDS)
        .filter_map(|(at, _)| doc[at + WORDS.len()..].split('`').next().map(str::to_owned))
        .collect()
}

fn is_cfg_test(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test"))
}

#[derive(Default)]
struct Scan {
    source: Source,
    /// The type or trait whose block is visited.
    owner: Option<String>,
    in_tests: bool,
}

impl Scan {
    fn item(&mut self, name: &syn::Ident, attributes: &[syn::Attribute]) {
        if self.in_tests {
            return;
        }
        let doc = doc(attributes);
        let name = self.owner.as_ref().map_or_else(|| name.to_string(), |owner| format!("{owner}::{name}"));
        let line = attributes.first().map_or(1, |a| a.span().start().line);
        self.source.items.push(Item { name, line, verified_by: verified_by(&doc), doc });
    }

    fn within(&mut self, owner: String, visit: impl FnOnce(&mut Self)) {
        let before = self.owner.replace(owner);
        visit(self);
        self.owner = before;
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

impl Visit<'_> for Scan {
    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        let before = self.in_tests;
        self.in_tests |= is_cfg_test(&module.attrs);
        visit::visit_item_mod(self, module);
        self.in_tests = before;
    }

    fn visit_item_fn(&mut self, function: &syn::ItemFn) {
        if function.attrs.iter().any(|a| a.path().is_ident("test")) {
            self.source.tests.push(function.sig.ident.to_string());
        } else if is_public(&function.vis) {
            self.item(&function.sig.ident, &function.attrs);
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_item_struct(&mut self, item: &syn::ItemStruct) {
        if is_public(&item.vis) {
            self.item(&item.ident, &item.attrs);
        }
    }

    fn visit_item_enum(&mut self, item: &syn::ItemEnum) {
        if is_public(&item.vis) {
            self.item(&item.ident, &item.attrs);
            self.within(item.ident.to_string(), |scan| {
                for variant in &item.variants {
                    // A variant's equation is that of its type, unless it names a test of its own.
                    if doc(&variant.attrs).contains("Verified by `") {
                        scan.item(&variant.ident, &variant.attrs);
                    }
                }
            });
        }
    }

    fn visit_item_impl(&mut self, block: &syn::ItemImpl) {
        if let syn::Type::Path(path) = &*block.self_ty
            && let Some(segment) = path.path.segments.last()
        {
            let of_trait = block.trait_.is_some();
            self.within(segment.ident.to_string(), |scan| {
                for item in &block.items {
                    if let syn::ImplItem::Fn(method) = item {
                        // Methods of traits are public as their trait is; they count where they name a test.
                        let counts = if of_trait {
                            doc(&method.attrs).contains("Verified by `")
                        } else {
                            is_public(&method.vis)
                        };
                        if counts {
                            scan.item(&method.sig.ident, &method.attrs);
                        }
                    }
                }
            });
        }
    }

    fn visit_item_macro(&mut self, item: &syn::ItemMacro) {
        if item.mac.path.segments.last().is_some_and(|s| s.ident == "proptest") {
            tests_of(item.mac.tokens.clone(), &mut self.source.tests);
        }
    }

    fn visit_field_value(&mut self, field: &syn::FieldValue) {
        if let syn::Member::Named(name) = &field.member
            && name == "id"
            && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &field.expr
        {
            self.source.identities.extend(text.value().split('-').next().map(str::to_owned));
        }
        visit::visit_field_value(self, field);
    }
}

/// The functions under `#[test]` in the tokens of a `proptest!`.
fn tests_of(tokens: TokenStream, tests: &mut Vec<String>) {
    let (mut marked, mut named) = (false, false);
    for token in tokens {
        match token {
            TokenTree::Group(group) => marked |= group.stream().to_string() == "test",
            TokenTree::Ident(word) if named => {
                tests.push(word.to_string());
                (marked, named) = (false, false);
            }
            TokenTree::Ident(word) => named = marked && word == "fn",
            _ => {}
        }
    }
}
