//! A run that was saved and resumed is the run that was never interrupted, bit for bit; errors leave a run as it was.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{Tiny, config, toy_data};
use serde_json::{Value, json};
use tweedie_data::{Dataset, OpenOptions, Split};
use tweedie_denoiser::NetworkGrad;
use tweedie_train::{
    Hooks, LrDecay, LrSchedule, RunEnd, RunLength, StepReport, StepSampling, TrainConfig, TrainError, Trainer,
};

const SIDE: usize = 12;

/// Images for five steps per epoch, so that the runs below cross the ends of epochs.
fn data() -> Dataset {
    toy_data(43, SIDE)
}

/// A network whose parameters fill more than one chunk of the optimiser.
fn net() -> Tiny {
    Tiny::new(4, 3, SIDE * SIDE, true)
}

/// The same images as a folder of files that stay on disk.
fn on_disk(folder: &Path, memory: &Dataset) -> Dataset {
    let header = [0x0803, memory.len() as u32, SIDE as u32, SIDE as u32].map(u32::to_be_bytes).concat();
    let pixels = (0..memory.len()).flat_map(|i| memory.image(i).unwrap().into_owned());
    std::fs::write(folder.join("train-images-idx3-ubyte"), header.into_iter().chain(pixels).collect::<Vec<_>>())
        .unwrap();
    let labels = memory.labels().unwrap().iter().map(|&label| label as u8);
    let header = [0x0801, memory.len() as u32].map(u32::to_be_bytes).concat();
    std::fs::write(folder.join("train-labels-idx1-ubyte"), header.into_iter().chain(labels).collect::<Vec<_>>())
        .unwrap();
    let options = OpenOptions { memory_limit: 0, ..OpenOptions::default() };
    let data = Dataset::open_with(folder.to_str().unwrap(), Split::Train, &options).unwrap();
    assert!(data.is_on_disk());
    data
}

/// Everything that a run computes, as bits.
#[derive(Debug, Default, PartialEq)]
struct Bits {
    vectors: [Vec<u32>; 4],
    reports: Vec<[u64; 7]>,
}

impl Bits {
    fn steps(&mut self, trainer: &mut Trainer<'_>, n: usize) {
        for _ in 0..n {
            let r = trainer.step().unwrap();
            let numbers = [r.loss, r.loss_ema, r.grad_norm, r.lr].map(f64::to_bits);
            self.reports.push([r.step, r.epoch, r.images, numbers[0], numbers[1], numbers[2], numbers[3]]);
        }
        self.vectors = vectors(trainer);
    }
}

fn vectors(trainer: &Trainer<'_>) -> [Vec<u32>; 4] {
    let o = trainer.optimizer();
    [trainer.params().values(), o.ema(), o.first_moment(), o.second_moment()]
        .map(|vector| vector.iter().map(|v| v.to_bits()).collect())
}

fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn a_run_that_reads_ahead_from_disk_and_is_resumed_has_the_bits_of_one_in_memory() {
    struct Stop<'a> {
        after: u64,
        stop: &'a AtomicBool,
        losses: Vec<u64>,
    }
    impl Hooks for Stop<'_> {
        fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
            self.losses.push(report.loss.to_bits());
            self.stop.store(report.step == self.after, Ordering::Relaxed);
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let memory = data();
    let disk = on_disk(folder.path(), &memory);
    let config = TrainConfig { flip: true, length: RunLength::Steps(14), ..config() };
    let mut straight = Bits::default();
    let mut network = net();
    straight.steps(&mut Trainer::new(&mut network, &memory, config.clone()).unwrap(), 14);
    let mut losses = Vec::new();
    let path = folder.path().join("state.safetensors");
    for (after, data) in [(4, &disk), (9, &memory), (14, &disk)] {
        let stop = AtomicBool::new(false);
        let mut network = net();
        let mut trainer = Trainer::new(&mut network, data, config.clone()).unwrap();
        if after > 4 {
            trainer.load_state(&path).unwrap();
        }
        let mut hooks = Stop { after, stop: &stop, losses: Vec::new() };
        trainer.run(&stop, &mut hooks).unwrap();
        losses.extend(hooks.losses);
        trainer.save_state(&path).unwrap();
        if after == 14 {
            assert_eq!(vectors(&trainer), straight.vectors);
        }
    }
    assert_eq!(losses, straight.reports.iter().map(|report| report[3]).collect::<Vec<_>>());
    // Mirrored images are other images.
    let mut plain = Bits::default();
    let mut network = net();
    plain.steps(&mut Trainer::new(&mut network, &memory, TrainConfig { flip: false, ..config }).unwrap(), 14);
    assert!(plain.vectors != straight.vectors);
}

#[test]
fn an_image_that_cannot_be_read_ends_the_run_and_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = on_disk(folder.path(), &data());
    let mut network = net();
    let mut trainer = Trainer::new(&mut network, &disk, config()).unwrap();
    let path = folder.path().join("train-images-idx3-ubyte");
    std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
    let message = trainer.run(&AtomicBool::new(false), &mut ()).unwrap_err().to_string();
    assert!(message.contains("train-images-idx3-ubyte"), "{message}");
    assert_eq!(trainer.steps_done(), 0);
}

fn cosine() -> TrainConfig {
    TrainConfig { lr_decay: LrDecay::Cosine, ..config() }
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = data();
    let straight = with_threads(1, || {
        let (mut net, mut bits) = (net(), Bits::default());
        bits.steps(&mut Trainer::new(&mut net, &data, cosine()).unwrap(), 14);
        bits
    });
    assert!(straight.vectors[0].len() > 2 * 8192);
    for (before, threads, threads_after) in [(7, 1, 1), (7, 2, 2), (1, 2, 1), (13, 1, 3), (5, 2, 2)] {
        let path = folder.path().join(format!("state-{before}-{threads}.safetensors"));
        let mut bits = Bits::default();
        with_threads(threads, || {
            let mut net = net();
            let mut trainer = Trainer::new(&mut net, &data, cosine()).unwrap();
            bits.steps(&mut trainer, before);
            trainer.save_state(&path).unwrap();
        });
        with_threads(threads_after, || {
            // A fresh network with other values, as another process would have.
            let mut net = net();
            net.params_mut().values_mut().fill(0.5);
            let mut trainer = Trainer::new(&mut net, &data, cosine()).unwrap();
            trainer.load_state(&path).unwrap();
            assert_eq!(trainer.steps_done(), before as u64);
            bits.steps(&mut trainer, 14 - before);
        });
        assert_eq!(bits, straight, "{before} steps, {threads} and {threads_after} threads");
    }
}

/// The losses that steps are drawn by are part of the state.
#[test]
fn importance_sampling_resumes_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let mut config = TrainConfig { step_sampling: StepSampling::Importance, ..config() };
    // So few steps that each is soon seen ten times.
    config.noise.train_steps = 3;
    let run = |steps: [usize; 2], config: &TrainConfig| {
        let mut bits = Bits::default();
        for (part, steps) in steps.into_iter().enumerate() {
            let mut net = net();
            let mut trainer = Trainer::new(&mut net, &data, config.clone()).unwrap();
            if part > 0 {
                trainer.load_state(&path).unwrap();
            }
            bits.steps(&mut trainer, steps);
            trainer.save_state(&path).unwrap();
        }
        bits
    };
    let straight = run([20, 0], &config);
    for before in [2, 9, 13] {
        assert_eq!(run([before, 20 - before], &config), straight, "{before} steps before");
    }
    let uniform = TrainConfig { step_sampling: StepSampling::Uniform, ..config };
    let even = run([20, 0], &uniform);
    assert_eq!(even.reports[0], straight.reports[0], "until every step is known, steps are drawn alike");
    assert_ne!(even.reports[19], straight.reports[19]);
}

#[test]
fn saving_twice_writes_the_same_bytes_and_loading_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let data = data();
    let mut net = net();
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    Bits::default().steps(&mut trainer, 3);
    trainer.save_state(&a).unwrap();
    trainer.load_state(&a).unwrap();
    trainer.save_state(&b).unwrap();
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

/// What a state of `config()` says when it is loaded into another run.
fn refusal(path: &Path, mut net: Tiny, data: &Dataset, config: TrainConfig) -> String {
    let mut trainer = Trainer::new(&mut net, data, config).unwrap();
    let before = vectors(&trainer);
    let message = trainer.load_state(path).unwrap_err().to_string();
    assert_eq!((vectors(&trainer), trainer.steps_done()), (before, 0), "a refused state changes nothing");
    message
}

#[test]
fn a_state_of_another_run_is_refused_with_the_field_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let mut saved = net();
    let mut trainer = Trainer::new(&mut saved, &data, config()).unwrap();
    trainer.step().unwrap();
    trainer.save_state(&path).unwrap();

    let message = refusal(&path, net(), &data, TrainConfig { lr: 0.02, ..config() });
    for part in ["state.safetensors", "config.lr", "0.01", "0.02", "saved value"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refusal(&path, net(), &data, TrainConfig { seed: 12, ..config() });
    assert!(message.contains("config.seed was 11") && message.contains("12 now"), "{message}");
    let mut other = config();
    other.noise.beta_end = 0.5;
    let message = refusal(&path, net(), &data, other);
    assert!(message.contains("config.noise.beta_end"), "{message}");
    let message = refusal(&path, Tiny::new(4, 4, SIDE * SIDE, true), &data, config());
    assert!(message.contains("network[2].shape[0] was 3") && message.contains("4 now"), "{message}");
    let message = refusal(&path, Tiny::new(4, 3, SIDE * SIDE, false), &data, config());
    assert!(message.contains("network[4].name") && message.contains("dense"), "{message}");
    let message = refusal(&path, net(), &toy_data(44, SIDE), config());
    assert!(message.contains("data.images was 43"), "{message}");

    // The length of the run and the interval of checkpoints may change.
    let longer = TrainConfig { length: RunLength::Minutes(3.0), checkpoint_minutes: 0.5, ..config() };
    let mut fresh = net();
    let mut trainer = Trainer::new(&mut fresh, &data, longer).unwrap();
    trainer.load_state(&path).unwrap();
    assert_eq!(trainer.steps_done(), 1);
}

#[test]
fn other_images_of_the_same_shape_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let mut saved = net();
    Trainer::new(&mut saved, &data, config()).unwrap().save_state(&path).unwrap();
    let mut bytes: Vec<u8> = (0..data.len()).flat_map(|i| data.image(i).unwrap().to_vec()).collect();
    bytes[4321] ^= 1;
    let other = Dataset::new("toy", data.shape(), bytes, data.labels().map(<[u32]>::to_vec)).unwrap();
    let message = refusal(&path, net(), &other, config());
    assert!(message.contains("data.content"), "{message}");
}

#[test]
fn a_missing_a_truncated_and_a_foreign_file_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let message = refusal(&path, net(), &data, config());
    assert!(message.contains("state.safetensors"), "{message}");
    let mut saved = net();
    Trainer::new(&mut saved, &data, config()).unwrap().save_state(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        refusal(&path, net(), &data, config());
    }
    // A whole file whose progress makes no sense.
    let entry = b"\"step\":\"0\"";
    let at = bytes.windows(entry.len()).position(|window| window == entry).expect("the step is in the header");
    let mut changed = bytes.clone();
    changed[at + entry.len() - 2] = b'x';
    std::fs::write(&path, changed).unwrap();
    let message = refusal(&path, net(), &data, config());
    assert!(message.contains("step"), "{message}");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_its_step_and_changes_nothing() {
    let data = data();
    for (poison, expected) in [(Some(f32::NAN), "loss"), (Some(f32::INFINITY), "loss"), (None, "norm of the gradient")]
    {
        let mut net = net();
        net.poison = poison.map(|value| (4, value));
        net.poison_gradient = poison.is_none().then_some(4);
        let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
        let mut bits = Bits::default();
        bits.steps(&mut trainer, 3);
        let error = trainer.step().unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { step: 4, what, .. } if what == expected), "{error}");
        let message = error.to_string();
        assert!(message.contains("step 4") && message.contains("those of step 3"), "{message}");
        assert_eq!(vectors(&trainer), bits.vectors, "parameters, buffers, moments and average are those of step 3");
        assert_eq!(trainer.steps_done(), 3);
        // The fault is gone: the run goes on as one that never met it.
        bits.steps(&mut trainer, 4);
        let mut healthy = self::net();
        let mut straight = Bits::default();
        straight.steps(&mut Trainer::new(&mut healthy, &data, config()).unwrap(), 7);
        assert_eq!(bits, straight);
    }
}

#[test]
fn numbers_that_are_not_finite_are_never_saved() {
    let data = data();
    let run = |change: fn(&mut TrainConfig), poison_mean| {
        let mut net = net();
        net.poison_mean = poison_mean;
        let mut config = TrainConfig { checkpoint_minutes: 1e-9, ..config() };
        change(&mut config);
        let mut hooks = Recorder::default();
        let error = Trainer::new(&mut net, &data, config).unwrap().run(&AtomicBool::new(false), &mut hooks);
        (error.unwrap_err(), hooks.events.join(", "))
    };
    // A step so long that parameters overflow, although the loss before it was finite.
    let (error, events) = run(|c| (c.lr, c.lr_warmup, c.clip_norm) = (3e38, 0, 0.0), None);
    assert!(
        matches!(&error, TrainError::NotFiniteTensor { step: 1, tensor, part: "value", .. } if tensor == "scale"),
        "{error}"
    );
    assert_eq!(events, "1");
    // Running statistics, in the middle of an epoch, at its end, and at the end of the run.
    for (length, last) in [(100, 3), (100, 5), (3, 3)] {
        let change: fn(&mut TrainConfig) = match (length, last) {
            (100, 3) => |c| c.length = RunLength::Steps(100),
            (100, _) => |c| (c.length, c.checkpoint_minutes) = (RunLength::Steps(100), 1e9),
            _ => |c| (c.length, c.checkpoint_minutes) = (RunLength::Steps(3), 1e9),
        };
        let (error, events) = run(change, Some(last));
        assert!(
            matches!(&error, TrainError::NotFiniteTensor { step, tensor, .. } if tensor == "mean" && *step == last),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("step {last}")) && error.to_string().contains("NaN"), "{error}");
        assert!(!events.contains(&format!("save {last}")), "{events}");
        assert!(events.ends_with(&last.to_string()), "{events}");
    }
}

#[test]
fn a_network_with_the_same_table_but_another_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let described = |eps: f64| json!({"_class_name": "Tiny", "groups": [8, 16], "eps": eps});
    let mut saved = net();
    Trainer::new(&mut saved, &data, config()).unwrap().with_architecture(described(0.5)).save_state(&path).unwrap();
    let load = |architecture: Option<Value>| {
        let mut net = net();
        let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
        if let Some(architecture) = architecture {
            trainer = trainer.with_architecture(architecture);
        }
        trainer.load_state(&path).map_err(|error| error.to_string())
    };
    let message = load(Some(described(0.25))).unwrap_err();
    assert!(message.contains("network.eps was 0.5") && message.contains("0.25 now"), "{message}");
    assert_eq!(load(Some(described(0.5))), Ok(()));
    assert_eq!(load(None), Ok(()), "who does not describe the network is not asked");
    // States of early versions say nothing about it.
    Trainer::new(&mut saved, &data, config()).unwrap().save_state(&path).unwrap();
    assert_eq!(load(Some(described(0.25))), Ok(()));
}

#[test]
fn a_time_that_no_run_takes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let mut saved = net();
    Trainer::new(&mut saved, &data, config()).unwrap().save_state(&path).unwrap();
    let state = tweedie_checkpoint::load_state(&path).unwrap();
    let vectors: Vec<_> = state.vectors().iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let write = |seconds: &str| {
        let mut meta = state.meta().clone();
        meta.insert("seconds".to_owned(), seconds.to_owned());
        tweedie_checkpoint::save_state(&path, &vectors, meta).unwrap();
    };
    for seconds in ["-1", "1e13", "1e300", "inf", "NaN"] {
        write(seconds);
        let message = refusal(&path, net(), &data, config());
        assert!(message.contains("seconds") && message.contains("1e12"), "{message}");
    }
    write("1e12");
    let mut net = net();
    Trainer::new(&mut net, &data, config()).unwrap().load_state(&path).unwrap();
}

#[test]
fn in_a_run_by_minutes_the_learning_rate_falls_with_the_time() {
    let data = data();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let minutes = 0.01;
    let config = TrainConfig {
        length: RunLength::Minutes(minutes),
        lr_decay: LrDecay::Cosine,
        lr_floor: 0.1,
        lr_warmup: 4,
        ..config()
    };
    let peak = config.lr;
    let lr = LrSchedule { peak, warmup: 4, decay: LrDecay::Cosine, total: 0, floor: 0.1 };
    let mut net = net();
    let mut trainer = Trainer::new(&mut net, &data, config.clone()).unwrap();
    while !trainer.is_complete() {
        // Read once, at the start of the step.
        let share = trainer.seconds() / (60.0 * minutes);
        let report = trainer.step().unwrap();
        assert_eq!(report.lr, lr.at_share(report.step, share));
    }
    assert!(trainer.steps_done() > 4);
    trainer.save_state(&path).unwrap();
    let done = trainer.steps_done();
    // A longer run goes on at its saved seconds, on the curve that it began: at the floor.
    let mut net = self::net();
    let longer = TrainConfig {
        length: RunLength::Minutes(2.0 * minutes),
        lr_decay_minutes: trainer.config().lr_decay_minutes,
        ..config
    };
    let mut trainer = Trainer::new(&mut net, &data, longer).unwrap();
    trainer.load_state(&path).unwrap();
    assert!(!trainer.is_complete() && trainer.seconds() >= 60.0 * minutes);
    let report = trainer.step().unwrap();
    assert_eq!((report.step, report.lr), (done + 1, lr.at_share(done + 1, 1.0)));
}

/// Writes down what the loop asks for, and raises the stop flag at a step.
#[derive(Default)]
struct Recorder<'a> {
    events: Vec<String>,
    stop_at: u64,
    stop: Option<&'a AtomicBool>,
    fail_at: u64,
    /// How long the end of an epoch takes.
    pause: Duration,
}

impl Hooks for Recorder<'_> {
    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.events.push(report.step.to_string());
        if report.step == self.stop_at {
            self.stop.unwrap().store(true, Ordering::Relaxed);
        }
        if report.step == self.fail_at {
            return Err(TrainError::hook("the disk is full"));
        }
        Ok(())
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> Result<(), TrainError> {
        self.events.push(format!("save {}", trainer.steps_done()));
        Ok(())
    }

    fn epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<(), TrainError> {
        assert_eq!(epoch, trainer.epochs_done());
        std::thread::sleep(self.pause);
        self.events.push(format!("epoch {epoch}"));
        Ok(())
    }
}

#[test]
fn the_loop_calls_its_hooks_and_ends_where_it_should() {
    let data = data();
    let stop = AtomicBool::new(false);
    let run = |length, stop_at| {
        stop.store(false, Ordering::Relaxed);
        let mut net = net();
        let mut trainer = Trainer::new(&mut net, &data, TrainConfig { length, ..config() }).unwrap();
        let mut hooks = Recorder { stop_at, stop: Some(&stop), ..Recorder::default() };
        let end = trainer.run(&stop, &mut hooks).unwrap();
        (end, hooks.events.join(", "))
    };
    let epoch = "1, 2, 3, 4, 5, save 5, epoch 1";
    assert_eq!(run(RunLength::Epochs(1), 0), (RunEnd::Complete, epoch.to_owned()));
    assert_eq!(run(RunLength::Steps(7), 0), (RunEnd::Complete, format!("{epoch}, 6, 7, save 7")));
    assert_eq!(run(RunLength::Epochs(9), 6), (RunEnd::Stopped, format!("{epoch}, 6, save 6")));
    assert_eq!(run(RunLength::Epochs(9), 5), (RunEnd::Stopped, epoch.to_owned()), "no second checkpoint of one step");
    let (end, events) = run(RunLength::Minutes(1e-6), 0);
    assert_eq!((end, events.as_str()), (RunEnd::Complete, "1, save 1"));
}

#[test]
fn a_run_whose_time_ends_between_two_steps_is_saved_as_complete() {
    let data = data();
    let config = TrainConfig { length: RunLength::Minutes(0.005), ..config() };
    let mut net = net();
    let mut trainer = Trainer::new(&mut net, &data, config).unwrap();
    // The first epoch takes less than the time, and its end all of it.
    let mut hooks = Recorder { pause: Duration::from_millis(320), ..Recorder::default() };
    trainer.run(&AtomicBool::new(false), &mut hooks).unwrap();
    assert_eq!(hooks.events.join(", "), "1, 2, 3, 4, 5, save 5, epoch 1, save 5");
}

#[test]
fn checkpoints_come_in_between_when_their_interval_is_over() {
    let data = data();
    let mut net = net();
    let config = TrainConfig { length: RunLength::Steps(3), checkpoint_minutes: 1e-9, ..config() };
    let mut hooks = Recorder::default();
    Trainer::new(&mut net, &data, config).unwrap().run(&AtomicBool::new(false), &mut hooks).unwrap();
    assert_eq!(hooks.events.join(", "), "1, save 1, 2, save 2, 3, save 3");
}

#[test]
fn the_error_of_a_hook_ends_the_run_without_another_checkpoint() {
    let data = data();
    let mut net = net();
    let mut hooks = Recorder { fail_at: 2, ..Recorder::default() };
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    let error = trainer.run(&AtomicBool::new(false), &mut hooks).unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    assert_eq!(hooks.events.join(", "), "1, 2");
}

#[test]
fn a_run_that_is_complete_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = data();
    let config = TrainConfig { length: RunLength::Steps(2), ..config() };
    let mut first = net();
    let mut trainer = Trainer::new(&mut first, &data, config.clone()).unwrap();
    trainer.run(&AtomicBool::new(false), &mut ()).unwrap();
    trainer.save_state(&path).unwrap();
    let mut second = net();
    let mut trainer = Trainer::new(&mut second, &data, config).unwrap();
    trainer.load_state(&path).unwrap();
    let mut hooks = Recorder::default();
    assert_eq!(trainer.run(&AtomicBool::new(false), &mut hooks).unwrap(), RunEnd::Complete);
    assert!(hooks.events.is_empty(), "{:?}", hooks.events);
}
