//! Folders of PNG and JPEG images.
//!
//! **Labels.** Each subfolder is a class, in the order of their names (by Unicode code points); images may lie deeper in it. A folder
//! without subfolders that hold images is a data set without labels.
//! **Parts.** If there is a subfolder `train`, that and `test` (or `val`, `valid`, `validation`) are the two parts, with the
//! classes of both; else every image is one for training.
//! **Pixels.** The orientation that a camera noted is applied; where an image is transparent it lies on white; 16 bits become 8.
//! Of a size that was asked for, the largest part of that shape around the centre is cut out and resized.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader, Rgba};
use rayon::prelude::*;

use crate::dataset::{Loaded, Source, Stored};
use crate::{Colour, DataError, Dataset, OpenOptions, Split};

/// The endings of files that are taken for images.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];
/// The greatest height or width of an image.
const MAX_SIDE: u32 = 1 << 14;
/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 8;
/// Images that are decoded between two looks for an error.
const CHUNK: usize = 256;

/// Whether a file's name is that of an image.
pub(crate) fn is_picture(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The subfolders of the parts, where a folder is divided.
fn parts(folder: &Path) -> Option<[Option<PathBuf>; 2]> {
    let find = |names: &[&str]| names.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
    let train = find(&["train"])?;
    Some([Some(train), find(&["test", "val", "valid", "validation"])])
}

/// The images below a folder, sorted by name, and how many other files there are.
#[derive(Default)]
struct Found {
    images: Vec<PathBuf>,
    others: usize,
}

/// The entries of a folder that are not hidden, sorted: folders and files.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let wrong = |source| DataError::Io { operation: "list", path: folder.to_owned(), source };
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() { folders.push(path) } else { files.push(path) }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn sort_files(files: Vec<PathBuf>, found: &mut Found) {
    let (images, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| is_picture(&path.to_string_lossy()));
    found.images.extend(images);
    found.others += others.len();
}

/// Everything below a folder.
fn walk(folder: &Path, depth: usize, found: &mut Found) -> Result<(), DataError> {
    if depth > MAX_DEPTH {
        let source = std::io::Error::other(format!("folders lie more than {MAX_DEPTH} deep in each other"));
        return Err(DataError::Io { operation: "list", path: folder.to_owned(), source });
    }
    let (folders, files) = entries(folder)?;
    sort_files(files, found);
    folders.iter().try_for_each(|folder| walk(folder, depth + 1, found))
}

/// The images of a part: those of each class, by its name, or all of them.
struct Part {
    loose: Vec<PathBuf>,
    classes: Vec<(String, Vec<PathBuf>)>,
    others: usize,
}

fn part(folder: &Path) -> Result<Part, DataError> {
    let mut loose = Found::default();
    let (folders, files) = entries(folder)?;
    sort_files(files, &mut loose);
    let mut part = Part { loose: loose.images, classes: Vec::new(), others: loose.others };
    for folder in folders {
        let mut found = Found::default();
        walk(&folder, 1, &mut found)?;
        part.others += found.others;
        if !found.images.is_empty() {
            part.classes.push((crate::folder::name(&folder), found.images));
        }
    }
    if let (Some(image), Some((class, _))) = (part.loose.first(), part.classes.first()) {
        return Err(DataError::Mixed { folder: folder.to_owned(), image: image.clone(), class: class.clone() });
    }
    Ok(part)
}

/// Whether a folder is one of images: there is one in it, or in a subfolder of it.
pub(crate) fn recognise(folder: &Path) -> Result<bool, DataError> {
    if parts(folder).is_some() {
        return Ok(true);
    }
    let (folders, files) = entries(folder)?;
    if files.iter().any(|path| is_picture(&path.to_string_lossy())) {
        return Ok(true);
    }
    for folder in folders {
        let mut found = Found::default();
        walk(&folder, 1, &mut found)?;
        if !found.images.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a folder of images.
pub(crate) fn folder(folder: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    let no_split = || DataError::NoSplit { file: folder.display().to_string(), split, only: Split::Train };
    let (own, other) = match (parts(folder), split) {
        (None, Split::Train) => (folder.to_owned(), None),
        (None, Split::Test) => return Err(no_split()),
        (Some([train, test]), split) => {
            let (own, other) = if split == Split::Train { (train, test) } else { (test, train) };
            (own.ok_or_else(no_split)?, other)
        }
    };
    let here = part(&own)?;
    let elsewhere = other.as_deref().map(part).transpose()?;
    // A class has the same number in both parts, even if one of them lacks it.
    let names: BTreeSet<String> = [Some(&here), elsewhere.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|part| part.classes.iter().map(|(name, _)| name.clone()))
        .collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut paths = here.loose;
    let mut labels = Vec::new();
    for (name, images) in here.classes {
        let label = names.binary_search(&name).unwrap_or_default() as u32;
        labels.extend(std::iter::repeat_n(label, images.len()));
        paths.extend(images);
    }
    if paths.is_empty() {
        return Err(DataError::Missing {
            what: format!("{split} images"),
            folder: own,
            looked_for: ENDINGS.map(|ending| format!("*.{ending}")).to_vec(),
            remedy: "name the folder that holds the images".to_owned(),
        });
    }
    let labels = (!labels.is_empty()).then_some(labels);
    let pictures = Pictures::plan(paths, options)?;
    let fingerprint = pictures.fingerprint(&own, labels.as_deref().unwrap_or_default());
    let shape = pictures.shape;
    let len = pictures.paths.len();
    let bytes = len as u64 * shape.iter().product::<usize>() as u64;
    let source = if bytes <= options.memory_limit {
        Source::Memory(pictures.load()?)
    } else {
        Source::Disk(std::sync::Arc::new(pictures))
    };
    let mut notes = Vec::new();
    if here.others > 0 {
        let files = if here.others == 1 { "1 file that is" } else { &format!("{} files that are", here.others) };
        notes.push(format!("{}: left out {files} neither PNG nor JPEG", own.display()));
    }
    Dataset::assemble(
        crate::folder::name(folder),
        shape,
        Loaded { source, len, fingerprint: Some(fingerprint), notes },
        labels,
    )?
    .with_class_names(names)
}

/// Images of a folder, decoded one by one.
struct Pictures {
    paths: Vec<PathBuf>,
    /// Bytes of each file.
    sizes: Vec<u64>,
    shape: [usize; 3],
    /// Whether images are cut and resized.
    resize: bool,
}

/// What the head of an image's file says.
struct Head {
    size: [u32; 2],
    grey: bool,
    bytes: u64,
}

fn broken(path: &Path, error: impl std::fmt::Display) -> DataError {
    DataError::Image { path: path.to_owned(), problem: error.to_string() }
}

/// Opens an image as what its first bytes say it is, with limits on its size and on the memory for it.
fn decoder(path: &Path) -> Result<impl ImageDecoder, DataError> {
    let wrong = |source| DataError::Io { operation: "open", path: path.to_owned(), source };
    let mut reader = ImageReader::open(path).map_err(wrong)?.with_guessed_format().map_err(wrong)?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    reader.into_decoder().map_err(|e| broken(path, e))
}

fn head(path: &Path) -> Result<Head, DataError> {
    let mut decoder = decoder(path)?;
    let (width, height) = decoder.dimensions();
    use image::metadata::Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = decoder.orientation().map_err(|e| broken(path, e))?;
    let turned = matches!(turned, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    let size = if turned { [width, height] } else { [height, width] };
    if size.contains(&0) || size.iter().any(|&side| side > MAX_SIDE) {
        return Err(broken(path, format!("it is {} x {}, and 1 to {MAX_SIDE} are read", size[0], size[1])));
    }
    let bytes = fs::metadata(path).map_or(0, |meta| meta.len());
    Ok(Head { size, grey: !decoder.color_type().has_color(), bytes })
}

impl Pictures {
    /// Looks at the head of every file and settles the shape of all images.
    fn plan(paths: Vec<PathBuf>, options: &OpenOptions) -> Result<Self, DataError> {
        let mut heads: Vec<Head> = Vec::with_capacity(paths.len());
        for some in paths.chunks(CHUNK) {
            let read: Vec<Result<Head, DataError>> = some.par_iter().map(|path| head(path)).collect();
            // The first broken file is named, whichever thread met one first.
            heads.extend(read.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        let size = match options.size {
            Some(size) if size.iter().all(|side| (1..=MAX_SIDE as usize).contains(side)) => size,
            Some(size) => {
                return Err(DataError::Parts {
                    name: "the size of the images".to_owned(),
                    what: "height and width",
                    expected: format!("1 to {MAX_SIDE}"),
                    found: format!("{} x {}", size[0], size[1]),
                });
            }
            None => {
                let first = heads[0].size;
                if let Some(i) = heads.iter().position(|head| head.size != first) {
                    let [a, b] = [first, heads[i].size].map(|[h, w]| format!("{h} x {w}"));
                    return Err(DataError::Sizes { first: paths[0].clone(), a, other: paths[i].clone(), b });
                }
                first.map(|side| side as usize)
            }
        };
        let resize = options.size.is_some();
        let channels = match options.colour {
            Colour::Grey => 1,
            Colour::Rgb => 3,
            Colour::AsStored if heads.iter().all(|head| head.grey) => 1,
            Colour::AsStored => 3,
        };
        let sizes = heads.iter().map(|head| head.bytes).collect();
        Ok(Self { paths, sizes, shape: [channels, size[0], size[1]], resize })
    }

    /// Tells these images from others by their names below `root`, the sizes of their files, their labels, and how they are
    /// read: to decode them all would take long where they do not fit into memory.
    fn fingerprint(&self, root: &Path, labels: &[u32]) -> u64 {
        let mut hash = crate::dataset::Fnv::default();
        for (path, size) in self.paths.iter().zip(&self.sizes) {
            let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
            hash.add(name.as_bytes());
            hash.add(&[0]);
            hash.add(&size.to_le_bytes());
        }
        labels.iter().for_each(|label| hash.add(&label.to_le_bytes()));
        hash.add(&[u8::from(self.resize)]);
        hash.0
    }

    /// Every image.
    fn load(&self) -> Result<Vec<u8>, DataError> {
        let size = self.shape.iter().product();
        let mut images = vec![0; self.paths.len() * size];
        for (i, some) in images.chunks_mut(CHUNK * size).enumerate() {
            let one = |(k, image): (usize, &mut [u8])| self.read(i * CHUNK + k, image);
            let read: Vec<Result<(), DataError>> = some.par_chunks_mut(size).enumerate().map(one).collect();
            read.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(images)
    }
}

impl Stored for Pictures {
    fn read(&self, index: usize, into: &mut [u8]) -> Result<(), DataError> {
        let path = &self.paths[index];
        let mut decoder = decoder(path)?;
        let orientation = decoder.orientation().map_err(|e| broken(path, e))?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(path, e))?;
        picture.apply_orientation(orientation);
        let [channels, height, width] = self.shape;
        let mut picture = on_white(picture);
        if channels == 1 {
            picture = DynamicImage::ImageLuma8(picture.into_luma8());
        }
        if self.resize {
            picture = fit(picture, height as u32, width as u32);
        }
        // The files may have changed since they were looked at.
        if (picture.height() as usize, picture.width() as usize) != (height, width) {
            let found = format!("it is {} x {} now, and was {height} x {width}", picture.height(), picture.width());
            return Err(broken(path, found));
        }
        if channels == 1 {
            into.copy_from_slice(picture.into_luma8().as_raw());
        } else {
            let plane = height * width;
            for (i, pixel) in picture.into_rgb8().as_raw().chunks_exact(3).enumerate() {
                for (c, &value) in pixel.iter().enumerate() {
                    into[c * plane + i] = value;
                }
            }
        }
        Ok(())
    }
}

/// An image without transparency, in 8 bits.
fn on_white(picture: DynamicImage) -> DynamicImage {
    if !picture.color().has_alpha() {
        return picture;
    }
    let grey = !picture.color().has_color();
    let mut rgba = picture.into_rgba8();
    for Rgba([r, g, b, a]) in rgba.pixels_mut() {
        for value in [r, g, b] {
            let mixed = u32::from(*value) * u32::from(*a) + 255 * (255 - u32::from(*a));
            *value = ((mixed + 127) / 255) as u8;
        }
        *a = 255;
    }
    let opaque = DynamicImage::ImageRgba8(rgba);
    if grey { DynamicImage::ImageLuma8(opaque.into_luma8()) } else { DynamicImage::ImageRgb8(opaque.into_rgb8()) }
}

/// The largest part of the wanted shape around the centre, resized.
fn fit(picture: DynamicImage, height: u32, width: u32) -> DynamicImage {
    let (h, w) = (u64::from(picture.height()), u64::from(picture.width()));
    let (to_h, to_w) = (u64::from(height), u64::from(width));
    // The wider of the two shapes keeps its height.
    let (cut_h, cut_w) = if w * to_h >= h * to_w { (h, h * to_w / to_h) } else { (w * to_h / to_w, w) };
    let (cut_h, cut_w) = (cut_h.max(1), cut_w.max(1));
    let picture = picture.crop_imm(((w - cut_w) / 2) as u32, ((h - cut_h) / 2) as u32, cut_w as u32, cut_h as u32);
    if (cut_h, cut_w) == (to_h, to_w) { picture } else { picture.resize_exact(width, height, FilterType::Lanczos3) }
}
