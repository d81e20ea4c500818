//! What the Rust peers of the benchmark have in common: options, files, the check and the turns (see `bench/README.md`).
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Steps before the first timed one, besides those of the check.
const WARM_UP: usize = 2;

/// Learning rate of the training steps, as in `networks.py`.
pub const LEARNING_RATE: f64 = 1e-5;

/// One work, as the command line gives it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Whether to train.
    pub train: bool,
    /// Images at once.
    pub batch: usize,
    /// Where the network's files are.
    pub files: PathBuf,
    model: String,
}

impl Job {
    fn from_args() -> Result<Self> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let get = |name: &str| {
            let at = args.iter().position(|arg| arg == name);
            at.and_then(|at| args.get(at + 1)).with_context(|| format!("the option {name} is missing"))
        };
        let train = match get("--task")?.as_str() {
            "train" => true,
            "forward" => false,
            other => bail!("--task should be train or forward, found {other}"),
        };
        let threads = get("--threads")?;
        // The libraries read the number of threads from here.
        let given = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
        ensure!(&given == threads, "RAYON_NUM_THREADS should be {threads}, found \"{given}\"; set it");
        let model = get("--model")?.clone();
        Ok(Self {
            train,
            batch: get("--batch")?.parse().context("--batch should be a number")?,
            files: Path::new(get("--folder")?).join(&model),
            model,
        })
    }

    /// The weights.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn weights(&self) -> Result<Tensors> {
        Tensors::read(&self.files.join("model/diffusion_pytorch_model.safetensors"))
    }

    /// Sample, timestep and labels.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn inputs(&self) -> Result<Tensors> {
        Tensors::read(&self.files.join(format!("input-{}.safetensors", self.batch)))
    }

    /// Output, target and losses.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn expected(&self) -> Result<Tensors> {
        Tensors::read(&self.files.join(format!("expected-{}.safetensors", self.batch)))
    }
}

/// A file of tensors in memory.
pub struct Tensors(Vec<u8>);

impl Tensors {
    fn read(path: &Path) -> Result<Self> {
        Ok(Self(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
    }

    /// Shape and bytes of a tensor of the given type.
    fn get(&self, name: &str, dtype: Dtype) -> Result<(Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.0)?;
        let view = file.tensor(name)?;
        ensure!(view.dtype() == dtype, "{name} should be {dtype:?}, found {:?}", view.dtype());
        Ok((view.shape().to_vec(), view.data().to_vec()))
    }

    /// Shape and values of a tensor of f32.
    ///
    /// # Errors
    /// If there is none of that name and type.
    pub fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.get(name, Dtype::F32)?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok((shape, values.collect()))
    }

    /// Values of a tensor of i64.
    ///
    /// # Errors
    /// If there is none of that name and type.
    pub fn i64(&self, name: &str) -> Result<Vec<i64>> {
        let (_, bytes) = self.get(name, Dtype::I64)?;
        Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Values of a tensor of f64.
    ///
    /// # Errors
    /// If there is none of that name and type.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let (_, bytes) = self.get(name, Dtype::F64)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }
}

/// What the textbook network adds for the time: sines at even positions and cosines at odd ones, `[N, dim]`.
pub fn position(times: &[f32], dim: usize) -> Vec<f32> {
    let angle = |t: f32, i: usize| f64::from(t) / 10_000f64.powf(i as f64 / dim as f64);
    let wave = |t: f32, i: usize| if i % 2 == 0 { angle(t, i).sin() } else { angle(t, i).cos() };
    times.iter().flat_map(|&t| (0..dim).map(move |i| wave(t, i) as f32)).collect()
}

/// A network that is ready to be run.
pub trait Peer {
    /// One forward pass; its output in NCHW.
    ///
    /// # Errors
    /// If the library fails.
    fn forward(&mut self) -> Result<Vec<f32>>;

    /// One training step; its loss before the update.
    ///
    /// # Errors
    /// If the library fails.
    fn train(&mut self) -> Result<f64>;
}

/// Loads the peer, checks it and takes turns until it is told to quit.
///
/// # Errors
/// If anything fails; stdout then ends without an answer.
pub fn run<P: Peer>(versions: Value, models: &[&str], load: impl FnOnce(&Job) -> Result<P>) -> Result<()> {
    let start = Instant::now();
    let job = Job::from_args()?;
    ensure!(models.contains(&job.model.as_str()), "this peer has the networks {models:?}, not {}", job.model);
    let idle = resident("VmRSS:")?;
    let expected = job.expected()?;
    let mut peer = load(&job)?;
    let mut losses = Vec::new();
    let error = if job.train {
        let mut worst = 0.0f64;
        for loss in expected.f64("losses")? {
            losses.push(peer.train()?);
            worst = worst.max((losses[losses.len() - 1] - loss).abs() / loss);
        }
        worst
    } else {
        relative_l2(&peer.forward()?, &expected.f32("output")?.1)?
    };
    drop(expected);
    let step = |peer: &mut P| if job.train { peer.train().map(drop) } else { peer.forward().map(drop) };
    for _ in 0..WARM_UP {
        step(&mut peer)?;
    }
    // From here on the system counts the peak anew.
    fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of the memory")?;
    answer(&json!({
        "ready": true, "error": error, "losses": losses, "idle_rss_mb": idle, "versions": versions,
        "setup_seconds": start.elapsed().as_secs_f64(),
    }))?;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        if let Some(seconds) = request["run"].as_f64() {
            let mut times = Vec::<f64>::new();
            while times.len() < 2 || times.iter().sum::<f64>() < seconds {
                let begin = Instant::now();
                step(&mut peer)?;
                times.push(begin.elapsed().as_secs_f64());
            }
            answer(&json!({ "seconds": times }))?;
        } else {
            return answer(&json!({ "peak_rss_mb": resident("VmHWM:")? }));
        }
    }
    Ok(())
}

fn answer(message: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{message}")?;
    Ok(out.flush()?)
}

/// A line of `/proc/self/status` in MB (10^6 bytes).
fn resident(key: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("there is no {key}"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok((kib * 1024) as f64 / 1e6)
}

fn relative_l2(found: &[f32], expected: &[f32]) -> Result<f64> {
    ensure!(found.len() == expected.len(), "expected {} numbers, found {}", expected.len(), found.len());
    let square = |x: f64| x * x;
    let distance: f64 = found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    Ok((distance / norm).sqrt())
}
