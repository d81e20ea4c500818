//! The keys of the multistep classes, of PNDM and of the consistency schedulers: each does something, or is refused by name.

use std::path::Path as FilePath;

use serde_json::{Value, json};
use tweedie_samplers::{
    Clip, ConsistencyForm, DpmForm, DpmOptions, DpmSlope, GroupSize, Integrand, LastMove, Lowering, MoveSet, Path,
    PndmStart, Process, SchedulerSpec, SinglestepOptions, SolverSpec, UniPcB, UniPcOptions, solver_by_name,
};
use tweedie_schedule::{GridEnd, Prediction, SigmaRule};

use super::from_config;

fn read_as(class: &str, mut keys: Value, wanted: Option<SolverSpec>) -> Result<SchedulerSpec, String> {
    keys["_class_name"] = json!(format!("{class}Scheduler"));
    let Value::Object(config) = keys else { panic!("an object") };
    from_config(&config, FilePath::new("dir/scheduler_config.json"), wanted).map_err(|e| e.to_string())
}

fn solver(class: &str, keys: Value) -> SolverSpec {
    read_as(class, keys, None).unwrap().solver
}

#[test]
fn keys_of_dpm_solver() {
    let usual = DpmOptions::plus_plus(DpmForm::Second);
    let sde = DpmOptions { integrand: Integrand::Noise, path: Path::Sde, ..usual };
    for (keys, expected) in [
        (json!({}), usual),
        (json!({"solver_order": 1}), DpmOptions { form: DpmForm::First, ..usual }),
        (json!({"solver_order": 3}), DpmOptions { form: DpmForm::Third, ..usual }),
        (json!({"algorithm_type": "dpmsolver"}), DpmOptions { integrand: Integrand::Noise, ..usual }),
        (json!({"algorithm_type": "sde-dpmsolver++"}), DpmOptions { path: Path::Sde, ..usual }),
        (json!({"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}), sde),
        (json!({"algorithm_type": "deis", "solver_type": "logrho"}), usual),
        (json!({"solver_type": "heun"}), DpmOptions { slope: DpmSlope::Heun, ..usual }),
        (json!({"lower_order_final": false}), DpmOptions { lowering: Lowering::Never, ..usual }),
        (json!({"lower_order_final": false, "euler_at_final": true}), DpmOptions { lowering: Lowering::Last, ..usual }),
        (json!({"euler_at_final": true}), DpmOptions { lowering: Lowering::LastAndShortRuns, ..usual }),
        (json!({"variance_type": "learned_range"}), usual),
    ] {
        assert_eq!(solver("DPMSolverMultistep", keys.clone()), SolverSpec::Dpm(expected), "{keys}");
    }
    let spec = |keys| read_as("DPMSolverMultistep", keys, None).unwrap();
    assert_eq!(spec(json!({"use_lu_lambdas": true})).sigmas, SigmaRule::Lambda);
    assert_eq!(spec(json!({"lambda_min_clipped": -5.1})).lambda_min, Some(-5.1));
    // As the bare token of Python's files is read.
    assert_eq!(spec(json!({"lambda_min_clipped": "-Infinity"})).lambda_min, Some(f64::NEG_INFINITY));
    assert_eq!(spec(json!({"final_sigmas_type": "sigma_min"})).end, GridEnd::FirstStep);
    let clip = spec(json!({"thresholding": true, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0})).clip;
    assert_eq!(clip, Clip::Dynamic { ratio: 0.9, max: 2.0 });
    // A name decides what it names, and the file the rest.
    let keys = json!({"solver_order": 3, "algorithm_type": "dpmsolver", "solver_type": "heun", "euler_at_final": true});
    let wanted = read_as("DPMSolverMultistep", keys, Some(solver_by_name("dpm++2m-sde").unwrap())).unwrap().solver;
    let options = DpmOptions { slope: DpmSlope::Heun, lowering: Lowering::LastAndShortRuns, ..usual };
    assert_eq!(wanted, SolverSpec::Dpm(DpmOptions { path: Path::Sde, ..options }));
}

#[test]
fn keys_of_the_other_multistep_classes() {
    let usual = UniPcOptions::new(2);
    for (keys, expected) in [
        (json!({}), usual),
        (json!({"solver_order": 3}), UniPcOptions::new(3)),
        (json!({"predict_x0": false}), UniPcOptions { integrand: Integrand::Noise, ..usual }),
        (json!({"solver_type": "bh1"}), UniPcOptions { b: UniPcB::Length, ..usual }),
        (json!({"lower_order_final": false}), UniPcOptions { lowering: Lowering::Never, ..usual }),
        (json!({"disable_corrector": [0, 3]}), UniPcOptions { uncorrected: MoveSet::new([0, 3]).unwrap(), ..usual }),
        (json!({"disable_corrector": []}), usual),
    ] {
        assert_eq!(solver("UniPCMultistep", keys.clone()), SolverSpec::UniPc(expected), "{keys}");
    }
    let deis = |form, lowering| SolverSpec::Deis { form, lowering };
    assert_eq!(solver("DEISMultistep", json!({})), deis(DpmForm::Second, Lowering::ShortRuns));
    let keys = json!({"solver_order": 3, "lower_order_final": false});
    assert_eq!(solver("DEISMultistep", keys), deis(DpmForm::Third, Lowering::Never));
    let single = SinglestepOptions::plus_plus(GroupSize::Two);
    for (keys, expected) in [
        (json!({}), single),
        (json!({"solver_order": 3}), SinglestepOptions { group: GroupSize::Three, ..single }),
        (json!({"lower_order_final": true}), SinglestepOptions { last: LastMove::First, ..single }),
        (json!({"algorithm_type": "dpmsolver"}), SinglestepOptions { integrand: Integrand::Noise, ..single }),
        (json!({"algorithm_type": "sde-dpmsolver++"}), SinglestepOptions { path: Path::Sde, ..single }),
        (json!({"solver_type": "heun"}), SinglestepOptions { slope: DpmSlope::Heun, ..single }),
    ] {
        assert_eq!(solver("DPMSolverSinglestep", keys.clone()), SolverSpec::DpmSinglestep(expected), "{keys}");
    }
    assert_eq!(solver("PNDM", json!({})), SolverSpec::pndm(PndmStart::RungeKutta));
    assert_eq!(solver("PNDM", json!({"skip_prk_steps": true})), SolverSpec::pndm(PndmStart::Multistep));
    let averaged = SolverSpec::Pndm { start: PndmStart::RungeKutta, averaged: Prediction::V };
    assert_eq!(solver("PNDM", json!({"prediction_type": "v_prediction"})), averaged);
}

#[test]
fn keys_of_consistency_sampling() {
    let latent = |scaling, original_steps| SolverSpec::Consistency(ConsistencyForm::Latent { scaling, original_steps });
    assert_eq!(solver("LCM", json!({})), latent(10.0, 50));
    assert_eq!(solver("LCM", json!({"timestep_scaling": 3.0, "original_inference_steps": 20})), latent(3.0, 20));
    let plain = |sigma_min, noise| SolverSpec::Consistency(ConsistencyForm::Plain { sigma_min, noise });
    let spec = read_as("CMStochasticIterative", json!({"sigma_min": 0.01, "s_noise": 1.1, "rho": 5.0}), None).unwrap();
    assert_eq!((spec.solver, spec.sigmas), (plain(0.01, 1.1), SigmaRule::Karras { rho: 5.0 }));
    assert_eq!((spec.train_steps, spec.clip), (40, Clip::Range(1.0)));
    let Process::Consistency(process) = spec.process else { panic!("{spec:?}") };
    assert_eq!((process.sigma_min, process.sigma_max, process.sigma_data), (0.01, 80.0, 0.5));
    let off = read_as("CMStochasticIterative", json!({"clip_denoised": false}), None).unwrap();
    assert_eq!(off.clip, Clip::None);
    // A table of betas stays one under the sampler of consistency models, and their process under another.
    let table = read_as("DDIM", json!({}), Some(solver_by_name("consistency").unwrap())).unwrap();
    assert_eq!((table.process, table.solver), (Process::Table, plain(0.0, 1.0)));
    let euler = read_as("CMStochasticIterative", json!({}), Some(SolverSpec::euler())).unwrap();
    assert!(matches!(euler.process, Process::Consistency(_)) && euler.plan(3).is_ok());
}

#[test]
fn refusals_of_the_multistep_classes() {
    for (class, keys, key) in [
        ("DPMSolverMultistep", json!({"solver_order": 4}), "solver_order"),
        ("DPMSolverMultistep", json!({"algorithm_type": "ddim"}), "algorithm_type"),
        ("DPMSolverMultistep", json!({"solver_type": "euler"}), "solver_type"),
        ("DPMSolverMultistep", json!({"use_flow_sigmas": true}), "use_flow_sigmas"),
        ("DPMSolverMultistep", json!({"use_dynamic_shifting": true}), "use_dynamic_shifting"),
        ("DPMSolverMultistep", json!({"flow_shift": "much"}), "flow_shift"),
        ("DPMSolverMultistep", json!({"variance_type": "wide"}), "variance_type"),
        ("DPMSolverMultistep", json!({"algorithm_type": "sde-dpmsolver"}), "final_sigmas_type"),
        ("DPMSolverMultistep", json!({"lambda_min_clipped": "low"}), "lambda_min_clipped"),
        ("DPMSolverMultistep", json!({"prediction_type": "flow_prediction"}), "prediction_type"),
        ("DPMSolverSinglestep", json!({"algorithm_type": "sde-dpmsolver"}), "algorithm_type"),
        ("DEISMultistep", json!({"algorithm_type": "ddim"}), "algorithm_type"),
        ("UniPCMultistep", json!({"solver_order": 0}), "solver_order"),
        ("UniPCMultistep", json!({"solver_order": 7}), "solver_order"),
        ("UniPCMultistep", json!({"solver_p": {"_class_name": "DDIMScheduler"}}), "solver_p"),
        ("UniPCMultistep", json!({"shift_terminal": 0.1}), "shift_terminal"),
        ("UniPCMultistep", json!({"disable_corrector": [-1]}), "disable_corrector"),
        ("UniPCMultistep", json!({"disable_corrector": [200]}), "disable_corrector"),
        ("LCM", json!({"timestep_scaling": 0.0}), "timestep_scaling"),
        ("CMStochasticIterative", json!({"sigma_min": 90.0}), "sigma_min"),
        ("CMStochasticIterative", json!({"sigma_data": 0.0}), "sigma_data"),
        ("CMStochasticIterative", json!({"s_noise": -1.0}), "s_noise"),
        ("CMStochasticIterative", json!({"num_train_timesteps": 0}), "num_train_timesteps"),
    ] {
        let message = read_as(class, keys.clone(), None).unwrap_err();
        assert!(message.contains("dir/scheduler_config.json") && message.contains(key), "{class} {keys}: {message}");
    }
}
