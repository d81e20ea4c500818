//! Key names of old checkpoints.

use std::borrow::Cow;

/// The present name of a parameter that an old diffusers checkpoint may call by another.
///
/// Old attention blocks have `query`, `key`, `value` and `proj_attn` where `to_q`, `to_k`, `to_v` and `to_out.0` are
/// expected today; every other key is returned as it is.
///
/// ```
/// # use tweedie_unet::canonical_key;
/// assert_eq!(canonical_key("mid_block.attentions.0.proj_attn.bias"), "mid_block.attentions.0.to_out.0.bias");
/// assert_eq!(canonical_key("conv_in.weight"), "conv_in.weight");
/// ```
pub fn canonical_key(key: &str) -> Cow<'_, str> {
    let mut parts = key.rsplitn(3, '.');
    let (last, layer, prefix) = (parts.next(), parts.next(), parts.next());
    let (Some(last), Some(layer), Some(prefix)) = (last, layer, prefix) else { return Cow::Borrowed(key) };
    let present = match layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return Cow::Borrowed(key),
    };
    if prefix.contains("attentions.") { Cow::Owned(format!("{prefix}.{present}.{last}")) } else { Cow::Borrowed(key) }
}
