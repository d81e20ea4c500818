use std::path::{Path, PathBuf};

use crate::cifar::Cifar;
use crate::{Colour, DataError, Dataset, OpenOptions, Split, cifar, idx, mnist, npy, pictures};

impl Dataset {
    /// [`Dataset::open_with`] and the usual options.
    ///
    /// # Errors
    /// As there.
    pub fn open(spec: &str, split: Split) -> Result<Self, DataError> {
        Self::open_with(spec, split, &OpenOptions::default())
    }

    /// Opens the data set called `spec`: `mnist`, the bundled digits, or a path. What lies there decides what it is:
    ///
    /// - **IDX files**: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, for [`Split::Test`] the same with `t10k-` or
    ///   `test-`; a dot in place of the dash before `idx` and a suffix `.gz` are accepted. A folder with no label file at all
    ///   is a data set without labels; labels for one split only, or under another name, are an error.
    /// - **CIFAR-10 or CIFAR-100**, the binary version: see [`cifar::Cifar`]. The folder may also lie within the given one.
    /// - **Images**, PNG and JPEG, the subfolders being the classes in the order of their names, or without subfolders and
    ///   labels. Subfolders `train` and `test` (or `val`, `valid`, `validation`) are the parts; without them every image is
    ///   for training. Transparent images lie on white.
    /// - **`.npy`**: an array `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]` of bytes, or of f32 or f64 in [0, 1] or [-1, 1],
    ///   which become the nearest of 256 levels. For training, without labels.
    /// - **`.npz`**: such an array named `x_train`, `train_images`, `images`, `x` or `arr_0`, with labels `y_train`,
    ///   `train_labels`, `labels`, `y` or `arr_1` if there are any; for [`Split::Test`] `x_test` or `test_images` likewise.
    ///
    /// # Errors
    /// If `spec` is none of these, a file is missing or damaged, there is no such split, or an option means nothing to
    /// the data; see [`DataError`].
    pub fn open_with(spec: &str, split: Split, options: &OpenOptions) -> Result<Self, DataError> {
        if spec == "mnist" {
            refuse_options(spec, "the bundled digits", options)?;
            return mnist(split);
        }
        let path = Path::new(spec);
        let unsupported = |found: &str| Err(DataError::Unsupported { spec: spec.to_owned(), found: found.to_owned() });
        match path.metadata() {
            Ok(meta) if meta.is_dir() => folder(path, split, options),
            Ok(_) => {
                let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
                match ending.as_deref() {
                    Some("npy" | "npz") => refuse_options(spec, "an array", options)?,
                    _ => return unsupported("it is a file of another kind"),
                }
                if ending.as_deref() == Some("npy") {
                    npy::open_npy(path, split, options)
                } else {
                    npy::open_npz(path, split, options)
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => unsupported("there is no such file or folder"),
            Err(source) => Err(DataError::Io { operation: "open", path: path.to_owned(), source }),
        }
    }
}

impl Dataset {
    /// Whether a path is that of a folder which [`Dataset::open`] takes for one of images.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn is_of_pictures(path: &Path) -> Result<bool, DataError> {
        if !path.is_dir() {
            return Ok(false);
        }
        let names = listing(path)?;
        Ok(Cifar::recognise(&names).is_none()
            && cifar_inside(&names).is_none()
            && !is_idx(&names)
            && pictures::recognise(path)?)
    }
}

/// The folder that an archive of CIFAR unpacks to.
fn cifar_inside(names: &[String]) -> Option<&'static str> {
    ["cifar-10-batches-bin", "cifar-100-binary"].into_iter().find(|inner| names.iter().any(|name| name == inner))
}

fn is_idx(names: &[String]) -> bool {
    names.iter().any(|name| name.contains("idx3") || name.contains("idx1"))
}

/// An error for options that only folders of images know.
fn refuse_options(spec: &str, found: &'static str, options: &OpenOptions) -> Result<(), DataError> {
    let option = match options {
        OpenOptions { size: Some(_), .. } => "the option for a size (--size)",
        OpenOptions { colour: Colour::Grey | Colour::Rgb, .. } => "the option for colours (--colour)",
        _ => return Ok(()),
    };
    Err(DataError::Option { spec: spec.to_owned(), option, found })
}

/// The name of a data set at a path.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Opens a folder as what its files say it is.
fn folder(folder: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    let names = listing(folder)?;
    let spec = folder.display().to_string();
    if let Some(kind) = Cifar::recognise(&names) {
        refuse_options(&spec, "CIFAR's files", options)?;
        return cifar::folder(folder, kind, split, options);
    }
    if let Some(inner) = cifar_inside(&names) {
        return self::folder(&folder.join(inner), split, options);
    }
    if !is_idx(&names) && pictures::recognise(folder)? {
        return pictures::folder(folder, split, options);
    }
    refuse_options(&spec, "IDX files", options)?;
    idx_folder(folder, split, options)
}

/// Every name that the file of a split may have, in the order of preference.
fn names(split: Split, kind: &str, dims: u8) -> Vec<String> {
    let stems: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &["t10k", "test"],
    };
    let mut names = Vec::new();
    for stem in stems {
        for separator in ['-', '.'] {
            for suffix in ["", ".gz"] {
                names.push(format!("{stem}-{kind}{separator}idx{dims}-ubyte{suffix}"));
            }
        }
    }
    names
}

fn find(folder: &Path, names: &[String]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn idx_folder(folder: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    let image_names = names(split, "images", 3);
    let label_names = names(split, "labels", 1);
    let Some(images_path) = find(folder, &image_names) else {
        return Err(no_images(folder, split, image_names));
    };
    let labels_path = find(folder, &label_names);
    if labels_path.is_none()
        && let Some(other) = listing(folder)?.into_iter().find(|name| name.contains("label") || name.contains("idx1"))
    {
        return Err(DataError::Missing {
            what: format!("{split} labels"),
            folder: folder.to_owned(),
            looked_for: label_names,
            remedy: format!("found {other}: rename it, or move it away to use the images without labels"),
        });
    }
    idx::open(&name(folder), &images_path, labels_path.as_deref(), options)
}

/// Why a folder without image files of this split is no data set: another split, another kind of data, or nothing.
fn no_images(folder: &Path, split: Split, looked_for: Vec<String>) -> DataError {
    let found = match listing(folder) {
        Ok(found) => found,
        Err(e) => return e,
    };
    if found.iter().any(|name| name.ends_with(".npy") || name.ends_with(".npz")) {
        let (spec, found) = (folder.display().to_string(), "it holds NumPy arrays: name one of the files");
        return DataError::Unsupported { spec, found: found.to_owned() };
    }
    let remedy = match found.len() {
        0 => "the folder is empty: put the IDX files there, or use `mnist`, which is bundled".to_owned(),
        n => {
            let shown = found.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
            let rest = if n > 8 { format!(" and {} more", n - 8) } else { String::new() };
            format!("the folder holds {shown}{rest}: rename the file, or name the folder that holds it")
        }
    };
    DataError::Missing { what: format!("{split} images"), folder: folder.to_owned(), looked_for, remedy }
}

/// The names in a folder, sorted.
fn listing(folder: &Path) -> Result<Vec<String>, DataError> {
    let wrong = |source| DataError::Io { operation: "list", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(wrong)? {
        names.push(entry.map_err(wrong)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
