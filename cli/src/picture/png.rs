//! PNG files.

use anyhow::{Context, Result};

use super::Canvas;

/// The picture as a PNG, with text chunks (keyword and text).
///
/// # Errors
/// If the picture or a keyword cannot be encoded.
pub fn encode(canvas: &Canvas, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let size = |n: usize| u32::try_from(n).context("the picture is too large for a PNG");
    let mut encoder = png::Encoder::new(&mut bytes, size(canvas.width)?, size(canvas.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in text {
        // tEXt holds Latin-1 only, and every reader knows it; iTXt holds everything.
        if text.is_ascii() {
            encoder.add_text_chunk((*keyword).to_owned(), (*text).to_owned())?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned())?;
        }
    }
    let mut writer = encoder.write_header().context("cannot encode the picture")?;
    writer.write_image_data(&canvas.rgb).context("cannot encode the picture")?;
    writer.finish().context("cannot encode the picture")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_text_survive() {
        let canvas = Canvas { width: 2, height: 1, rgb: vec![1, 2, 3, 250, 251, 252] };
        let bytes = encode(&canvas, &[("parameters", "{\"seed\":1}"), ("title", "Zürich→")]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; 6];
        reader.next_frame(&mut rgb).unwrap();
        assert_eq!(rgb, canvas.rgb);
        let info = reader.info();
        assert_eq!(info.uncompressed_latin1_text[0].keyword, "parameters");
        assert_eq!(info.uncompressed_latin1_text[0].text, "{\"seed\":1}");
        assert_eq!(info.utf8_text[0].get_text().unwrap(), "Zürich→");
    }
}
