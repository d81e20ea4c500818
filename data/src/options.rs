/// What colours the images of a folder are read in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Colour {
    /// Grey if every image of the split is grey, else red, green and blue.
    #[default]
    AsStored,
    /// One channel: the luminance of Rec. 709 where an image has colours.
    Grey,
    /// Three channels: red, green, blue.
    Rgb,
}

/// How a data set is read, see [`Dataset::open_with`](crate::Dataset::open_with).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Height and width of the images of a folder: each is cut to this shape around its centre and resized (Lanczos,
    /// three lobes). `None`: as they are, which has to be the same for all. Other data have one size and cannot be resized.
    pub size: Option<[usize; 2]>,
    /// The colours of the images of a folder. Other data say themselves what they are.
    pub colour: Colour,
    /// Bytes of decoded images, `N * C * H * W`, up to which a data set is held in memory. A larger one stays on disk, and each
    /// batch is read when it is drawn. Compressed arrays (`.gz`, `savez_compressed`) cannot be read in parts: larger ones are
    /// an error.
    pub memory_limit: u64,
}

impl OpenOptions {
    /// The usual [`OpenOptions::memory_limit`]: 1 GiB.
    pub const MEMORY_LIMIT: u64 = 1 << 30;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { size: None, colour: Colour::default(), memory_limit: Self::MEMORY_LIMIT }
    }
}
