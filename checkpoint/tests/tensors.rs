//! Safetensors files: bit-exact round trips, and refusals of everything that is not one.

use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tweedie_checkpoint::{
    CheckpointError, Dtype, Tensor, TensorFile, check_keys, default_metadata, load_state, save_safetensors, save_state,
    write_safetensors,
};

fn bytes(tensors: &[Tensor<'_>], dtype: Dtype) -> Result<Vec<u8>, CheckpointError> {
    let mut out = Vec::new();
    write_safetensors(&mut out, "memory", tensors, dtype, &default_metadata())?;
    Ok(out)
}

fn read(bytes: Vec<u8>) -> Result<TensorFile, CheckpointError> {
    TensorFile::from_bytes(bytes, "memory")
}

/// A file with this header and `data` zero bytes.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn refused(bytes: Vec<u8>, part: &str) {
    let message = read(bytes).unwrap_err().to_string();
    assert!(message.contains("memory") && message.contains(part), "{part}: {message}");
}

#[test]
fn what_is_written_is_what_the_reference_library_writes() {
    let (a, b, n) = ([1.5f32, -2.0, 0.1, f32::MIN_POSITIVE, 7.0, -0.0], [3.0f32], [41i64]);
    let tensors =
        [Tensor::f32("z \"quoted\" \u{e9}", &[2, 3], &a), Tensor::i64("n", &[], &n), Tensor::f32("b", &[1], &b)];
    let le = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (a8, b8, n8) = (le(&a), le(&b), n[0].to_le_bytes());
    let views = [
        ("z \"quoted\" \u{e9}", TensorView::new(Dtype::F32, vec![2, 3], &a8).unwrap()),
        ("n", TensorView::new(Dtype::I64, vec![], &n8).unwrap()),
        ("b", TensorView::new(Dtype::F32, vec![1], &b8).unwrap()),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    assert_eq!(bytes(&tensors, Dtype::F32).unwrap(), safetensors::serialize(views, Some(metadata)).unwrap());
    // The order in which tensors are handed over does not matter.
    let mut reversed = tensors;
    reversed.reverse();
    assert_eq!(bytes(&tensors, Dtype::F16).unwrap(), bytes(&reversed, Dtype::F16).unwrap());
}

/// Inputs of other programs come in every type that numpy has.
#[test]
fn any_integer_and_float_type_is_read() {
    let file = |dtype: &str, data: &[u8], count: usize| {
        let header =
            format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":[{count}],\"data_offsets\":[0,{}]}}}}", data.len());
        let mut bytes = raw(&header, 0);
        bytes.extend(data);
        read(bytes).unwrap()
    };
    for (dtype, data) in [
        ("I8", [3i8, -2].map(i8::to_le_bytes).concat()),
        ("I16", [3i16, -2].map(i16::to_le_bytes).concat()),
        ("I32", [3i32, -2].map(i32::to_le_bytes).concat()),
        ("I64", [3i64, -2].map(i64::to_le_bytes).concat()),
    ] {
        assert_eq!(file(dtype, &data, 2).read_i64("x").unwrap(), [3, -2], "{dtype}");
        assert!(file(dtype, &data, 2).read_f64("x").is_err(), "{dtype}");
    }
    for (dtype, data) in [
        ("U8", [3u8, 200].map(u8::to_le_bytes).concat()),
        ("U16", [3u16, 200].map(u16::to_le_bytes).concat()),
        ("U32", [3u32, 200].map(u32::to_le_bytes).concat()),
        ("U64", [3u64, 200].map(u64::to_le_bytes).concat()),
    ] {
        assert_eq!(file(dtype, &data, 2).read_i64("x").unwrap(), [3, 200], "{dtype}");
    }
    assert_eq!(file("U64", &u64::MAX.to_le_bytes(), 1).read_i64("x").unwrap(), [i64::MAX]);
    for (dtype, data) in [
        ("F64", [0.25f64, -1.5].map(f64::to_le_bytes).concat()),
        ("F32", [0.25f32, -1.5].map(f32::to_le_bytes).concat()),
        ("F16", [0.25, -1.5].map(|v| f16::from_f64(v).to_le_bytes()).concat()),
        ("BF16", [0.25, -1.5].map(|v| bf16::from_f64(v).to_le_bytes()).concat()),
    ] {
        assert_eq!(file(dtype, &data, 2).read_f64("x").unwrap(), [0.25, -1.5], "{dtype}");
        assert!(file(dtype, &data, 2).read_i64("x").is_err(), "{dtype}");
    }
}

#[test]
fn files_are_mapped_and_described() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let (a, n) = ([1.0f32, f32::NAN], [i64::MIN, i64::MAX]);
    let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "\u{1f600}\n".to_owned())]);
    save_safetensors(&path, &[Tensor::f32("a", &[1, 2], &a), Tensor::i64("n", &[2], &n)], Dtype::F32, &metadata)
        .unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.name(), path.display().to_string());
    assert_eq!((file.len(), file.is_empty(), file.metadata()), (2, false, &metadata));
    let list: Vec<_> = file.tensors().map(|t| (t.name, t.dtype, t.shape)).collect();
    assert_eq!(list, [("a", Dtype::F32, &[1usize, 2][..]), ("n", Dtype::I64, &[2])]);
    assert_eq!(file.get("n").unwrap().shape, [2]);
    assert_eq!(file.get("m"), None);
    assert_eq!(file.read_f32("a").unwrap().map_bits(), a.to_vec().map_bits());
    assert_eq!(file.read_i64("n").unwrap(), n);
    assert_eq!(
        file.read_f32_finite("a").unwrap_err().to_string().split(';').next().unwrap(),
        format!("tensor a in {}: element 1 is NaN", path.display())
    );
    assert!(matches!(file.read_f32("n").unwrap_err(), CheckpointError::WrongDtype { found: Dtype::I64, .. }));
    assert!(matches!(file.read_i64("a").unwrap_err(), CheckpointError::WrongDtype { found: Dtype::F32, .. }));
    let message = file.read_f32("x").unwrap_err().to_string();
    assert!(message.contains("no tensor x in") && message.contains("the file holds a, n"), "{message}");
}

trait MapBits {
    fn map_bits(self) -> Vec<u32>;
}

impl MapBits for Vec<f32> {
    fn map_bits(self) -> Vec<u32> {
        self.into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn half_precision_rounds_to_even_and_refuses_overflow() {
    // 2049 and 2051 lie halfway between neighbours in F16, whose spacing is 2 there; 65519.996 is the greatest number
    // that rounds to the greatest F16.
    let values = [2049.0f32, 2051.0, 65519.996, -0.0, 5.9604645e-8, 2.9802322e-8, f32::INFINITY];
    let file = read(bytes(&[Tensor::f32("a", &[7], &values)], Dtype::F16).unwrap()).unwrap();
    assert_eq!(file.get("a").unwrap().dtype, Dtype::F16);
    assert_eq!(file.read_f32("a").unwrap(), [2048.0, 2052.0, 65504.0, -0.0, 5.9604645e-8, 0.0, f32::INFINITY]);
    let error = bytes(&[Tensor::f32("conv.weight", &[2], &[1.0, -65520.0])], Dtype::F16).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("conv.weight") && message.contains("-65520 at element 1"), "{message}");
    let file = read(bytes(&[Tensor::f32("a", &[2], &[257.0, 259.0])], Dtype::BF16).unwrap()).unwrap();
    assert_eq!(file.read_f32("a").unwrap(), [256.0, 260.0]);
    assert!(bytes(&[Tensor::f32("a", &[1], &[f32::MAX])], Dtype::BF16).is_err());
    assert!(bytes(&[Tensor::f32("a", &[1], &[f32::MAX])], Dtype::F32).is_ok());
}

#[test]
fn what_cannot_be_saved_is_refused_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let fails = |tensors: &[Tensor<'_>], dtype, part: &str| {
        let message = save_safetensors(&path, tensors, dtype, &default_metadata()).unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && message.contains(part), "{message}");
        assert!(!path.exists());
    };
    fails(&[Tensor::f32("a", &[2], &[1.0])], Dtype::F32, "1 elements for the shape [2]");
    fails(&[Tensor::f32("a", &[usize::MAX, 2], &[1.0])], Dtype::F32, "1 elements for the shape");
    fails(&[Tensor::f32("a", &[1], &[1.0]), Tensor::i64("a", &[1], &[1])], Dtype::F32, "two tensors of that name");
    fails(&[Tensor::f32("a", &[1], &[1.0])], Dtype::I64, "the type should be F32, F16 or BF16, found I64");
    fails(&[Tensor::f32("__metadata__", &[1], &[1.0])], Dtype::F32, "reserved");
}

#[test]
fn headers_that_lie() {
    let one = |info: &str| format!("{{\"a\":{info}}}");
    let f32s = |shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    assert!(read(raw(&one(&f32s("[2]", 0, 8)), 8)).is_ok());
    refused(vec![], "it has 0 bytes");
    refused(raw(&one(&f32s("[2]", 0, 8)), 7), "only 7 bytes of data follow (truncated?)");
    refused(raw(&one(&f32s("[2]", 0, 8)), 9), "1 bytes at its end belong to no tensor");
    refused(raw(&one(&f32s("[3]", 0, 8)), 8), "does not fill the bytes 0..8");
    refused(raw(&one(&f32s("[2]", 8, 0)), 8), "does not fill");
    refused(raw(&one(&f32s("[2]", 4, 12)), 12), "the bytes 0..4 before it belong to no tensor");
    refused(raw(&one(&f32s("[4294967296,4294967296]", 0, 8)), 8), "too large to be true");
    refused(raw(&one(&f32s("[288230376151711744]", 0, 1 << 60)), 8), "only 8 bytes of data follow");
    refused(raw(&one(&f32s("[-1]", 0, 8)), 8), "no valid JSON description");
    refused(raw(&one("{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}"), 8), "F33");
    let overlap = format!("{{\"a\":{},\"b\":{}}}", f32s("[2]", 0, 8), f32s("[2]", 4, 12));
    refused(raw(&overlap, 12), "tensor b: its bytes 4..12 overlap");
    let same = format!("{{\"a\":{},\"b\":{}}}", f32s("[2]", 0, 8), f32s("[2]", 0, 8));
    refused(raw(&same, 8), "overlap");
    let twice = format!("{{\"a\":{},\"a\":{}}}", f32s("[2]", 0, 8), f32s("[2]", 8, 16));
    refused(raw(&twice, 16), "the key a appears twice");
    refused(raw("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "the key __metadata__ appears twice");
    refused(raw("{\"__metadata__\":{\"a\":1}}", 0), "no valid JSON description");
    refused(raw("[]", 0), "an object of tensor descriptions");
    refused(raw(&"[".repeat(100_000), 0), "no valid JSON description");
    let mut broken = raw("{\"__metadata__\":{\"ab\":\"cd\"}}", 0);
    broken[8 + 18] = 0xff;
    refused(broken, "no valid JSON description");
    refused(
        raw(&format!("{{\"a\":{}1{}}}", "{\"b\":".repeat(10_000), "}".repeat(10_000)), 0),
        "no valid JSON description",
    );
    refused(raw("{}{}", 0), "no valid JSON description");
    let mut huge = raw("{}", 0);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(huge.clone(), "18446744073709551615 bytes long, more than the limit");
    huge[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    refused(huge.clone(), "more than the limit");
    huge[..8].copy_from_slice(&100_000_000u64.to_le_bytes());
    refused(huge.clone(), "a header of 100000000 bytes is announced, 2 follow");
    huge[..8].copy_from_slice(b"PK\x03\x04\x14\x00\x08\x08");
    refused(huge, "pickle");
    // 640 is an honest header length whose first bytes are those of a pickle.
    assert!(read(raw(&format!("{{{}}}", " ".repeat(638)), 0)).is_ok());
    assert!(read(raw("{\"__metadata__\":null}  ", 0)).unwrap().is_empty());
}

#[test]
fn truncated_at_every_byte() {
    let whole = bytes(&[Tensor::f32("a", &[2, 2], &[1.0; 4]), Tensor::i64("n", &[], &[1])], Dtype::F32).unwrap();
    assert!(read(whole.clone()).is_ok());
    for len in 0..whole.len() {
        assert!(matches!(read(whole[..len].to_vec()), Err(CheckpointError::Damaged { .. })), "{len}");
    }
}

#[test]
fn paths_that_are_no_safetensors_file() {
    let directory = tempfile::tempdir().unwrap();
    let message = |name: &str| TensorFile::open(directory.path().join(name)).unwrap_err().to_string();
    assert!(message("none.safetensors").contains("check the path"));
    assert!(message("").contains("it is a directory"));
    std::fs::write(directory.path().join("empty.safetensors"), b"").unwrap();
    assert!(message("empty.safetensors").contains("it is empty"));
    let pickle = message("unet/diffusion_pytorch_model.bin");
    assert!(
        pickle.contains("unet/diffusion_pytorch_model.safetensors") && pickle.contains("safe_serialization=True"),
        "{pickle}"
    );
    assert!(message("te/pytorch_model.bin").contains("te/model.safetensors"));
    std::fs::write(directory.path().join("disguised.safetensors"), b"PK\x03\x04aaaaaaaa").unwrap();
    assert!(message("disguised.safetensors").contains("pickle"));
    if cfg!(unix) {
        assert!(TensorFile::open("/dev/null").unwrap_err().to_string().contains("no regular file"));
    }
}

#[test]
fn released_tensors_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let values: Vec<Vec<f32>> = (0..3).map(|k| (0..5000).map(|i| (i * 3 + k) as f32).collect()).collect();
    let tensors: Vec<Tensor<'_>> =
        ["a", "b", "c"].into_iter().zip(&values).map(|(name, values)| Tensor::f32(name, &[5000], values)).collect();
    save_safetensors(&path, &tensors, Dtype::F32, &default_metadata()).unwrap();
    let mapped = TensorFile::open(&path).unwrap();
    let in_memory = read(std::fs::read(&path).unwrap()).unwrap();
    for file in [mapped, in_memory] {
        for name in ["b", "c", "none of these"] {
            file.release(name);
            for (name, values) in ["a", "b", "c"].into_iter().zip(&values) {
                assert_eq!(&file.read_f32(name).unwrap(), values, "{name}");
            }
        }
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let save = |name: &str, tensors: &[Tensor<'_>]| {
        save_safetensors(at(name), tensors, Dtype::F32, &default_metadata()).unwrap()
    };
    save("m-00001-of-00002.safetensors", &[Tensor::f32("a", &[1], &[1.0]), Tensor::f32("unlisted", &[1], &[9.0])]);
    save("m-00002-of-00002.safetensors", &[Tensor::f32("b", &[2], &[2.0, 3.0])]);
    let open = |json: &str| {
        std::fs::write(at("m.safetensors.index.json"), json).unwrap();
        TensorFile::open(at("m.safetensors.index.json"))
    };
    let file = open(r#"{"metadata":{"total_size":12},"weight_map":{"a":"m-00001-of-00002.safetensors","b":"m-00002-of-00002.safetensors"}}"#).unwrap();
    assert_eq!(file.tensors().map(|t| t.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(file.read_f32("b").unwrap(), [2.0, 3.0]);
    let message = |json| open(json).unwrap_err().to_string();
    assert!(
        message(r#"{"weight_map":{"c":"m-00001-of-00002.safetensors"}}"#).contains("weight_map.c should be a shard")
    );
    assert!(message(r#"{"weight_map":{"a":"m-00003-of-00002.safetensors"}}"#).contains("m-00003-of-00002.safetensors"));
    assert!(message(r#"{"weight_map":{"a":"../secret"}}"#).contains("should be a file name"));
    assert!(message(r#"{"weight_map":{"a":1}}"#).contains("should be a file name"));
    assert!(message(r#"{}"#).contains("weight_map should be an object"));
}

#[test]
fn keys_are_compared_in_one_error() {
    let data = [0.0; 6];
    let file = read(
        bytes(
            &[Tensor::f32("a", &[2, 3], &data), Tensor::f32("b", &[6], &data), Tensor::f32("old.ids", &[6], &data)],
            Dtype::F32,
        )
        .unwrap(),
    )
    .unwrap();
    let ignore = |name: &str| name.ends_with("ids");
    check_keys([("b", &[6usize][..]), ("a", &[2, 3])], &file, ignore).unwrap();
    let error = check_keys([("a", &[3usize, 2][..]), ("c", &[1, 1]), ("d", &[])], &file, ignore).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory does not hold the weights of this network: 2 missing (c [1, 1], d []); 1 unexpected (b [6]); \
         1 of another shape (a expected [3, 2] found [2, 3]); check that config and weights belong together"
    );
    let many: Vec<String> = (0..1050).map(|i| format!("layer.{i:04}")).collect();
    let message =
        check_keys(many.iter().map(|n| (n.as_str(), &[1usize][..])), &file, |_| true).unwrap_err().to_string();
    assert!(
        message.contains("1050 missing (")
            && message.contains("layer.0999 [1], and 50 more)")
            && !message.contains("layer.1000"),
        "{message}"
    );
}

#[test]
fn tensors_are_renamed_without_loss() {
    let mut file =
        read(bytes(&[Tensor::f32("a", &[1], &[1.0]), Tensor::f32("b", &[1], &[2.0])], Dtype::F32).unwrap()).unwrap();
    file.rename(|name| (name == "a").then(|| "c".to_owned())).unwrap();
    assert_eq!((file.read_f32("c").unwrap(), file.read_f32("b").unwrap()), (vec![1.0], vec![2.0]));
    assert!(file.rename(|_| Some("same".to_owned())).unwrap_err().to_string().contains("there twice"));
}

#[test]
fn states_round_trip_and_foreign_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.safetensors");
    let values = [1.0f32, -0.0, f32::from_bits(0x7fc0_1234), f32::INFINITY, f32::from_bits(1)];
    let meta =
        BTreeMap::from([("step".to_owned(), "18446744073709551615".to_owned()), ("note".to_owned(), String::new())]);
    save_state(&path, &[("m", &values), ("empty", &[])], meta.clone()).unwrap();
    let mut state = load_state(&path).unwrap();
    assert_eq!((state.meta(), state.parse::<u64>("step").unwrap()), (&meta, u64::MAX));
    assert_eq!(state.take("m", 5).unwrap().map_bits(), values.to_vec().map_bits());
    assert!(state.take("empty", 0).unwrap().is_empty());
    assert!(state.vectors().is_empty());
    assert!(state.take("m", 5).unwrap_err().to_string().contains("lacks the vector m"));
    assert!(state.text("none").unwrap_err().to_string().contains("lacks the entry none"));
    assert!(state.parse::<u64>("note").unwrap_err().to_string().contains("the entry note is \"\""));
    let mut state = load_state(&path).unwrap();
    assert!(state.take("m", 4).unwrap_err().to_string().contains("has 5 elements where 4 are needed"));

    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(load_state(&path).unwrap_err().to_string().contains("truncated"));
    save_safetensors(&path, &[], Dtype::F32, &default_metadata()).unwrap();
    assert!(load_state(&path).unwrap_err().to_string().contains("it is no training state"));
    let future = BTreeMap::from([("tweedie_state".to_owned(), "2".to_owned())]);
    save_safetensors(&path, &[], Dtype::F32, &future).unwrap();
    assert!(load_state(&path).unwrap_err().to_string().contains("format 2, and format 1 is needed"));
}

fn any_shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..5, 0..4)
}

proptest! {
    /// Every bit of every number survives, whatever the names, shapes and values.
    #[test]
    fn f32_round_trips_are_exact(tensors in prop::collection::btree_map(".{0,12}", (any_shape(), any::<u64>()), 0..6)) {
        prop_assume!(!tensors.contains_key("__metadata__"));
        let owned: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
            .into_iter()
            .map(|(name, (shape, seed))| {
                let n = shape.iter().product::<usize>();
                let bits = |i: usize| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32 * 7) as u32;
                (name, shape, (0..n).map(|i| f32::from_bits(bits(i))).collect())
            })
            .collect();
        let tensors: Vec<_> = owned.iter().map(|(name, shape, data)| Tensor::f32(name, shape, data)).collect();
        let written = bytes(&tensors, Dtype::F32).unwrap();
        prop_assert_eq!(SafeTensors::deserialize(&written).unwrap().len(), owned.len());
        let file = read(written).unwrap();
        prop_assert_eq!(file.len(), owned.len());
        for (name, shape, data) in owned {
            prop_assert_eq!(file.get(&name).unwrap().shape, &shape[..]);
            prop_assert_eq!(file.read_f32(&name).unwrap().map_bits(), data.map_bits());
        }
    }

    /// What is read back from half precision is the nearest number, by the definition of each type.
    #[test]
    fn half_round_trips_are_nearest(values in prop::collection::vec(-60000f32..60000.0, 1..20)) {
        let shape = [values.len()];
        for (dtype, near) in [
            (Dtype::F16, &(|v: f32| [f16::from_f32(v), f16::from_bits(f16::from_f32(v).to_bits() ^ 1)].map(f32::from)) as &dyn Fn(f32) -> [f32; 2]),
            (Dtype::BF16, &|v: f32| [bf16::from_f32(v), bf16::from_bits(bf16::from_f32(v).to_bits() ^ 1)].map(f32::from)),
        ] {
            let file = read(bytes(&[Tensor::f32("a", &shape, &values)], dtype).unwrap()).unwrap();
            for (&v, r) in values.iter().zip(file.read_f32("a").unwrap()) {
                let [nearest, neighbour] = near(v);
                prop_assert_eq!(r, nearest);
                prop_assert!((r - v).abs() <= (neighbour - v).abs());
            }
        }
    }

    /// What was read from a file and is written again gives the same file, byte for byte, in every type.
    #[test]
    fn files_that_are_read_and_written_again_are_the_same(bits in prop::collection::vec(any::<u32>(), 1..40), split in 0usize..40) {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let number = |bits: u32| match dtype {
                Dtype::F16 => f16::from_bits(bits as u16).to_f32(),
                Dtype::BF16 => bf16::from_bits(bits as u16).to_f32(),
                _ => f32::from_bits(bits),
            };
            // A conversion makes every NaN a quiet one.
            let numbers: Vec<f32> = bits.iter().map(|&b| number(b)).filter(|v| !v.is_nan()).collect();
            let (a, b) = numbers.split_at(split.min(numbers.len()));
            let (shape_a, shape_b) = ([a.len()], [1, b.len()]);
            let first = bytes(&[Tensor::f32("a", &shape_a, a), Tensor::f32("b", &shape_b, b)], dtype).unwrap();
            let file = read(first.clone()).unwrap();
            let tensors: Vec<_> = file.tensors().map(|t| (t.name, t.shape, file.read_f32(t.name).unwrap())).collect();
            prop_assert!(file.tensors().all(|t| t.dtype == dtype));
            let tensors: Vec<_> = tensors.iter().map(|(name, shape, data)| Tensor::f32(name, shape, data)).collect();
            prop_assert_eq!(bytes(&tensors, dtype).unwrap(), first);
        }
    }

    /// No bytes at all make the reader panic.
    #[test]
    fn byte_soup(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(bytes);
    }

    /// The same with an honest length and plausible JSON: what is accepted, the reference library accepts as well, and
    /// every tensor can be read.
    #[test]
    fn header_soup(
        infos in prop::collection::vec(
            (
                "[ab]",
                prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8", "F4", "X"]),
                prop::collection::vec(prop_oneof![4 => 0u64..4, 1 => any::<u64>()], 0..3),
                prop_oneof![8 => 0u64..24, 1 => any::<u64>()],
                prop_oneof![8 => 0u64..24, 1 => any::<u64>()],
            ),
            0..3,
        ),
        data in 0usize..24,
    ) {
        let entries: Vec<_> = infos
            .iter()
            .map(|(name, dtype, shape, from, to)| {
                format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{from},{to}]}}")
            })
            .collect();
        let bytes = raw(&format!("{{{}}}", entries.join(",")), data);
        if let Ok(file) = read(bytes.clone()) {
            prop_assert!(SafeTensors::deserialize(&bytes).is_ok());
            for tensor in file.tensors() {
                let n = tensor.shape.iter().product::<usize>();
                match tensor.dtype {
                    Dtype::F32 | Dtype::F16 | Dtype::BF16 => prop_assert_eq!(file.read_f32(tensor.name).unwrap().len(), n),
                    Dtype::I64 => prop_assert_eq!(file.read_i64(tensor.name).unwrap().len(), n),
                    _ => prop_assert!(file.read_f32(tensor.name).is_err()),
                }
            }
        }
    }

    /// A valid file with one byte changed is read or refused, never a panic.
    #[test]
    fn flipped_bytes(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = bytes(&[Tensor::f32("a", &[2], &[1.0, 2.0]), Tensor::i64("n", &[1], &[3])], Dtype::F32).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(file) = read(bytes) {
            for tensor in file.tensors() {
                let _ = (file.read_f32(tensor.name), file.read_i64(tensor.name));
            }
        }
    }
}
