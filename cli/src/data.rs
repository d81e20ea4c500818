//! How data sets are opened: the options that `train` and `eval` share.

use std::num::NonZeroU64;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tweedie_data::{Colour, Dataset, OpenOptions, Split};

use crate::args::Common;
use crate::console;

/// Height and width, typed as `64` or `48x64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub [usize; 2]);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        match [height, width].map(|side| side.parse().ok().filter(|side| (1..=1 << 14).contains(side))) {
            [Some(height), Some(width)] => Ok(Self([height, width])),
            _ => Err("expected a side such as 64, or height and width such as 48x64, of 1 to 16384".to_owned()),
        }
    }
}

/// `--colour`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColourName {
    /// One channel.
    Grey,
    /// Three channels.
    Rgb,
}

/// The options.
#[derive(Args, Clone, Debug, Default)]
pub struct DataArgs {
    /// Size that the images of a folder are cut and resized to: N, or HEIGHTxWIDTH [default: theirs, which has to be one]
    #[arg(long, value_name = "SIZE", help_heading = "Data")]
    pub size: Option<Size>,
    /// Colours that the images of a folder are read in [default: grey if all of them are, else rgb]
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Data")]
    pub colour: Option<ColourName>,
    /// MiB of images that are held in memory at most; larger data are read from disk batch by batch [default: 1024]
    #[arg(long, value_name = "MIB", help_heading = "Data")]
    pub data_memory: Option<NonZeroU64>,
}

impl DataArgs {
    /// What they ask for.
    pub fn options(&self) -> OpenOptions {
        let limit = self.data_memory.map(|mib| mib.get().saturating_mul(1 << 20));
        OpenOptions {
            size: self.size.map(|size| size.0),
            colour: match self.colour {
                None => Colour::AsStored,
                Some(ColourName::Grey) => Colour::Grey,
                Some(ColourName::Rgb) => Colour::Rgb,
            },
            memory_limit: limit.unwrap_or(OpenOptions::MEMORY_LIMIT),
        }
    }

    /// The same with the size and colours of a network's images, where none were given and `spec` is a folder of images.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn options_for(&self, spec: &str, shape: Option<[usize; 3]>) -> Result<OpenOptions> {
        let mut options = self.options();
        if let Some([channels, height, width]) = shape
            && Dataset::is_of_pictures(Path::new(spec)).context("--data")?
        {
            options.size = options.size.or(Some([height, width]));
            if self.colour.is_none() {
                options.colour = match channels {
                    1 => Colour::Grey,
                    3 => Colour::Rgb,
                    _ => Colour::AsStored,
                };
            }
        }
        Ok(options)
    }
}

/// Opens a data set and says what should be known of its reading.
///
/// # Errors
/// As [`Dataset::open_with`].
pub fn open(spec: &str, split: Split, options: &OpenOptions, common: &Common) -> Result<Dataset> {
    let data = Dataset::open_with(spec, split, options).context("--data")?;
    data.notes().iter().for_each(|note| console::report(common, &format!("note: {note}")));
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sides_or_height_and_width() {
        assert_eq!("64".parse(), Ok(Size([64, 64])));
        assert_eq!("48x64".parse(), Ok(Size([48, 64])));
        for wrong in ["", "0", "x", "64x", "64x64x3", "-1", "20000"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
