//! A picture in the terminal, by the best means that it has.

use std::io::IsTerminal;

use image::{DynamicImage, RgbImage};

use super::Canvas;

/// The widest preview, in columns of the terminal.
const WIDEST: u32 = 100;

/// Shows the picture if stdout is a terminal that can; nothing depends on whether it could.
pub fn preview(canvas: &Canvas) {
    let term = std::env::var("TERM").unwrap_or_default();
    if !std::io::stdout().is_terminal() || term.is_empty() || term == "dumb" {
        return;
    }
    let (Ok(width), Ok(height)) = (u32::try_from(canvas.width), u32::try_from(canvas.height)) else { return };
    let Some(image) = RgbImage::from_raw(width, height, canvas.rgb.clone()) else { return };
    let (columns, _) = viuer::terminal_size();
    let width = WIDEST.min(u32::from(columns).max(1)).min(width);
    // A terminal is asked for kitty's protocol and waited for, so only one that is known to answer is asked.
    let answers = term.contains("kitty") || term.contains("ghostty") || std::env::var_os("KITTY_WINDOW_ID").is_some();
    let use_kitty = answers && std::io::stdin().is_terminal();
    let config = viuer::Config { absolute_offset: false, width: Some(width), use_kitty, ..viuer::Config::default() };
    // A terminal that cannot show it is no reason to fail: the file is written already.
    let _ = viuer::print(&DynamicImage::ImageRgb8(image), &config);
}
