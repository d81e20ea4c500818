use std::path::{Path, PathBuf};

use crate::{DataError, Dataset, Split, idx, mnist};

impl Dataset {
    /// Opens the data set called `spec`: `mnist`, the bundled digits, or the path of a folder of IDX files.
    ///
    /// The folder holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, for [`Split::Test`] the same with
    /// `t10k-` or `test-`; a dot in place of the dash before `idx` and a suffix `.gz` are accepted. A folder with no label
    /// file at all is a data set without labels; labels for one split only, or under another name, are an error.
    ///
    /// # Errors
    /// If `spec` is neither, a file is missing, or one of them is damaged; see [`DataError`].
    pub fn open(spec: &str, split: Split) -> Result<Self, DataError> {
        if spec == "mnist" {
            return mnist(split);
        }
        let path = Path::new(spec);
        let unsupported = |found: &str| Err(DataError::Unsupported { spec: spec.to_owned(), found: found.to_owned() });
        match path.metadata() {
            Ok(meta) if meta.is_dir() => folder(path, split),
            Ok(_) => unsupported("it is a file, not a folder"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => unsupported("there is no such folder"),
            Err(source) => Err(DataError::Io { operation: "open", path: path.to_owned(), source }),
        }
    }
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

fn folder(folder: &Path, split: Split) -> Result<Dataset, DataError> {
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
    let images_name = images_path.display().to_string();
    let labels_name = labels_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let images = idx::read_images(&images_path)?;
    let labels = labels_path.map(|path| idx::read_labels(&path)).transpose()?;
    let name = folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
    idx::dataset(&name, (images, &images_name), labels.map(|labels| (labels, labels_name.as_str())))
}

/// Why a folder without image files of this split is no data set: another split, another kind of data, or nothing.
fn no_images(folder: &Path, split: Split, looked_for: Vec<String>) -> DataError {
    let found = match listing(folder) {
        Ok(found) => found,
        Err(e) => return e,
    };
    let ends = |suffixes: &[&str]| {
        found.iter().any(|name| suffixes.iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix)))
    };
    let unsupported = if ends(&["_batch_1.bin", "test_batch.bin"]) {
        Some("it looks like a folder of CIFAR-10 binary files")
    } else if ends(&[".png", ".jpg", ".jpeg", ".webp"]) {
        Some("it looks like a folder of image files")
    } else if ends(&[".npy", ".npz"]) {
        Some("it looks like a folder of NumPy arrays")
    } else {
        None
    };
    if let Some(what) = unsupported {
        return DataError::Unsupported { spec: folder.display().to_string(), found: what.to_owned() };
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
