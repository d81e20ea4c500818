use crate::{DataError, Dataset, Split, idx};

/// The MNIST digits that are compiled into this crate: 60,000 training or 10,000 test images, `[1, 28, 28]`, 10 classes.
///
/// Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits". No file is read and no network used.
///
/// # Errors
/// None in practice: the bundled files pass through the same checks as files from outside.
pub fn mnist(split: Split) -> Result<Dataset, DataError> {
    let (images, labels): (&[u8], &[u8]) = match split {
        Split::Train => (
            include_bytes!("../assets/mnist/train-images-idx3-ubyte.gz"),
            include_bytes!("../assets/mnist/train-labels-idx1-ubyte.gz"),
        ),
        Split::Test => (
            include_bytes!("../assets/mnist/t10k-images-idx3-ubyte.gz"),
            include_bytes!("../assets/mnist/t10k-labels-idx1-ubyte.gz"),
        ),
    };
    let images_name = format!("the bundled MNIST {split} images");
    let labels_name = format!("the bundled MNIST {split} labels");
    let images = idx::images_from_bytes(images, &images_name)?;
    let labels = idx::labels_from_bytes(labels, &labels_name)?;
    idx::dataset("mnist", (images, &images_name), Some((labels, &labels_name)))
}
