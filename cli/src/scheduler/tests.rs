use tweedie_samplers::PndmStart;

use super::*;

fn read(json: serde_json::Value, wanted: Option<SolverSpec>) -> Result<SchedulerSpec, String> {
    let Value::Object(config) = json else { panic!("an object") };
    from_config(&config, Path::new("dir/scheduler_config.json"), wanted).map_err(|e| e.to_string())
}

#[test]
fn missing_keys_take_the_defaults_of_the_class() {
    assert_eq!(read(serde_json::json!({}), None), Ok(SchedulerSpec::default()));
    let ddim = SchedulerSpec { solver: SolverSpec::ddim(), ..SchedulerSpec::default() };
    assert_eq!(
        read(serde_json::json!({"_class_name": "DDIMScheduler", "_diffusers_version": "0.6.0"}), None),
        Ok(ddim)
    );
}

#[test]
fn every_key_counts() {
    let config = serde_json::json!({
        "_class_name": "DDIMScheduler", "num_train_timesteps": 50, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "trained_betas": null, "clip_sample": true, "clip_sample_range": 2.0,
        "set_alpha_to_one": false, "steps_offset": 1, "prediction_type": "v_prediction", "thresholding": false,
        "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5, "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": true
    });
    let mut expected = SchedulerSpec {
        solver: SolverSpec::Ddim { eta: 0.0, use_clipped_model_output: false },
        train_steps: 50,
        betas: BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 },
        rescale_zero_snr: true,
        prediction: Prediction::V,
        spacing: Spacing::Trailing,
        steps_offset: 1,
        clip: Clip::Range(2.0),
        end: GridEnd::FirstStep,
        ..SchedulerSpec::default()
    };
    assert_eq!(read(config.clone(), None), Ok(expected.clone()));
    let mut dynamic = config.clone();
    dynamic["thresholding"] = true.into();
    expected.clip = Clip::Dynamic { ratio: 0.9, max: 1.5 };
    assert_eq!(read(dynamic, None), Ok(expected.clone()));
    // Another sampler drops what is DDIM's own, and nothing else.
    expected.clip = Clip::Range(2.0);
    (expected.solver, expected.end) = (SolverSpec::ddpm(), GridEnd::Clean);
    assert_eq!(read(config, Some(SolverSpec::ddpm())), Ok(expected));
}

#[test]
fn null_is_off_and_the_keys_to_treat_as_absent_are_absent() {
    let off = serde_json::json!({"clip_sample": null, "thresholding": null, "trained_betas": null});
    assert_eq!(read(off, None).map(|s| s.clip), Ok(Clip::None));
    let absent = serde_json::json!({"_use_default_values": ["timestep_spacing"], "timestep_spacing": "trailing"});
    assert_eq!(read(absent, None).map(|s| s.spacing), Ok(Spacing::Leading));
    let early = serde_json::json!({"predict_epsilon": false, "tensor_format": "pt"});
    assert_eq!(read(early, None).map(|s| s.prediction), Ok(Prediction::X0));
    let table = serde_json::json!({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2});
    assert_eq!(read(table, None).map(|s| s.betas), Ok(BetaSchedule::Custom(vec![0.1, 0.2])));
}

#[test]
fn files_of_other_samplers_serve_a_wanted_one() {
    let pndm = serde_json::json!({
        "_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1, "set_alpha_to_one": false,
        "beta_schedule": "scaled_linear", "clip_sample": false
    });
    assert_eq!(read(pndm.clone(), None).map(|spec| spec.solver), Ok(SolverSpec::pndm(PndmStart::Multistep)));
    let sde = serde_json::json!({"_class_name": "DPMSolverSDEScheduler"});
    let refused = read(sde, None).unwrap_err();
    assert!(
        refused.contains("DPMSolverSDEScheduler") && refused.contains("--sampler (ddpm, ddim, euler,"),
        "{refused}"
    );
    let spec = read(pndm, Some(SolverSpec::ddim())).unwrap();
    assert_eq!((spec.steps_offset, spec.clip), (1, Clip::None));
    assert_eq!((spec.solver, spec.end), (SolverSpec::ddim(), GridEnd::FirstStep));
    // Its class would take the linspace spacing, where DDIM's takes the leading one; and a spacing that is given stays.
    let spacing = |file, wanted| read(file, Some(wanted)).map(|spec| spec.spacing);
    let bare = serde_json::json!({"_class_name": "DDIMScheduler"});
    assert_eq!(spacing(bare.clone(), SolverSpec::ddim()), Ok(Spacing::Leading));
    assert_eq!(spacing(bare, SolverSpec::heun()), Ok(Spacing::Linspace));
    assert_eq!(
        spacing(serde_json::json!({"timestep_spacing": "trailing"}), SolverSpec::euler()),
        Ok(Spacing::Trailing)
    );
    for wanted in [None, Some(SolverSpec::ddim())] {
        let refused = read(serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}), wanted).unwrap_err();
        assert!(refused.contains("FlowMatchEulerDiscreteScheduler") && refused.contains("DDIMScheduler"), "{refused}");
    }
}

/// A file of a class with one key.
fn with(class: &str, key: &str, value: Value) -> Value {
    let mut config = serde_json::json!({"_class_name": class});
    config[key] = value;
    config
}

fn euler(key: &str, value: Value) -> Value {
    with("EulerDiscreteScheduler", key, value)
}

fn edm(key: &str, value: Value) -> Value {
    with("EDMEulerScheduler", key, value)
}

#[test]
fn every_key_of_the_sigma_family_counts() {
    let config = serde_json::json!({
        "_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction", "interpolation_type": "log_linear", "use_karras_sigmas": true,
        "use_exponential_sigmas": false, "use_beta_sigmas": null, "sigma_min": 0.1, "sigma_max": 9, "timestep_spacing": "leading",
        "timestep_type": "continuous", "steps_offset": 1, "rescale_betas_zero_snr": true, "final_sigmas_type": "sigma_min"
    });
    let expected = SchedulerSpec {
        solver: SolverSpec::euler(),
        train_steps: 50,
        betas: BetaSchedule::cosine(),
        rescale_zero_snr: true,
        prediction: Prediction::V,
        time: TimeKind::Continuous,
        spacing: Spacing::Leading,
        steps_offset: 1,
        sigmas: SigmaRule::karras(),
        sigma_range: SigmaRange::Table,
        sigma_min: Some(0.1),
        sigma_max: Some(9.0),
        end: GridEnd::FirstStep,
        clip: Clip::None,
        ..SchedulerSpec::default()
    };
    assert_eq!(read(config.clone(), None), Ok(expected.clone()));
    // As `from_config` has it, another class takes what keys it has, and its own defaults for the rest.
    let heun = SchedulerSpec {
        solver: SolverSpec::heun(),
        rescale_zero_snr: false,
        time: TimeKind::Discrete,
        sigma_range: SigmaRange::Visited,
        sigma_min: None,
        sigma_max: None,
        end: GridEnd::Clean,
        ..expected.clone()
    };
    assert_eq!(read(config, Some(SolverSpec::heun())), Ok(heun));
    let bare = |class| read(serde_json::json!({"_class_name": class}), None).unwrap();
    for (class, solver) in [
        ("HeunDiscreteScheduler", SolverSpec::heun()),
        ("KDPM2DiscreteScheduler", SolverSpec::Kdpm2),
        ("KDPM2AncestralDiscreteScheduler", SolverSpec::Kdpm2Ancestral),
    ] {
        let found = bare(class);
        let betas = BetaSchedule::Linear { start: 0.00085, end: 0.012 };
        assert_eq!(
            (found.solver, found.betas, found.clip, found.spacing),
            (solver, betas, Clip::None, Spacing::Linspace)
        );
    }
    let lms = bare("LMSDiscreteScheduler");
    assert_eq!((lms.solver, lms.betas), (SolverSpec::lms(), SchedulerSpec::default().betas));
    let rules = [
        ("use_exponential_sigmas", true.into(), SigmaRule::Exponential),
        ("use_beta_sigmas", true.into(), SigmaRule::Beta),
        ("interpolation_type", "log_linear".into(), SigmaRule::LogLinear),
    ];
    for (key, value, rule) in rules {
        assert_eq!(read(euler(key, value), None).map(|spec| spec.sigmas), Ok(rule), "{key}");
    }
    let clipped = with("HeunDiscreteScheduler", "clip_sample", true.into());
    assert_eq!(read(clipped, None).map(|spec| spec.clip), Ok(Clip::Range(1.0)));
}

#[test]
fn edm_files_describe_a_process_without_a_table() {
    let config = serde_json::json!({
        "_class_name": "EDMEulerScheduler", "sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.2, "rho": 5.0,
        "sigma_schedule": "karras", "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min", "num_train_timesteps": 7
    });
    let process = EdmProcess { sigma_min: 0.01, sigma_max: 20.0, sigma_data: 1.2, sign: OutputSign::Negated };
    let expected = SchedulerSpec {
        solver: SolverSpec::euler(),
        process: Process::Edm(process),
        train_steps: 7,
        sigmas: SigmaRule::Karras { rho: 5.0 },
        end: GridEnd::FirstStep,
        clip: Clip::None,
        ..SchedulerSpec::default()
    };
    assert_eq!(read(config.clone(), None), Ok(expected.clone()));
    // The process stays, whatever the sampler.
    let heun = SchedulerSpec { solver: SolverSpec::heun(), ..expected };
    assert_eq!(read(config, Some(SolverSpec::heun())), Ok(heun));
    assert_eq!(read(edm("sigma_schedule", "exponential".into()), None).map(|s| s.sigmas), Ok(SigmaRule::Exponential));
    let paper = read(serde_json::json!({"_class_name": "EDMEulerScheduler"}), None).unwrap();
    assert_eq!((paper.process, paper.sigmas), (Process::Edm(EdmProcess::default()), SigmaRule::karras()));
}

#[test]
fn refusals_name_file_and_key() {
    for (config, key) in [
        (serde_json::json!({"beta_schedul": "linear"}), "beta_schedul"),
        (serde_json::json!({"beta_schedule": "even"}), "beta_schedule"),
        (serde_json::json!({"beta_start": "small"}), "beta_start"),
        (serde_json::json!({"num_train_timesteps": 10.5}), "num_train_timesteps"),
        (serde_json::json!({"num_train_timesteps": -1}), "num_train_timesteps"),
        (serde_json::json!({"variance_type": "learned"}), "variance_type"),
        (serde_json::json!({"prediction_type": "flow"}), "prediction_type"),
        (serde_json::json!({"timestep_spacing": "even"}), "timestep_spacing"),
        (serde_json::json!({"clip_sample_range": -1.0}), "clip_sample_range"),
        (serde_json::json!({"clip_sample": 1}), "clip_sample"),
        (serde_json::json!({"trained_betas": [0.1, "x"]}), "trained_betas"),
        (serde_json::json!({"_class_name": 7}), "_class_name"),
        (serde_json::json!({"beta_start": 1.5}), "beta_start"),
        (serde_json::json!({"beta_end": 0.0}), "beta_end"),
        (serde_json::json!({"num_train_timesteps": 0}), "num_train_timesteps"),
        (serde_json::json!({"num_train_timesteps": 0, "trained_betas": []}), "num_train_timesteps"),
        (serde_json::json!({"trained_betas": [0.1, 0.2]}), "trained_betas"),
        (serde_json::json!({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}), "trained_betas"),
        (serde_json::json!({"rescale_betas_zero_snr": true, "num_train_timesteps": 1}), "rescale_betas_zero_snr"),
        (euler("use_beta_sigmas", 1.into()), "use_beta_sigmas"),
        (euler("interpolation_type", "cubic".into()), "interpolation_type"),
        (euler("timestep_type", "even".into()), "timestep_type"),
        (euler("final_sigmas_type", "one".into()), "final_sigmas_type"),
        (euler("sigma_min", (-1.0).into()), "sigma_min"),
        (euler("sigma_max", "large".into()), "sigma_max"),
        (edm("sigma_min", 90.0.into()), "sigma_min"),
        (edm("sigma_data", 0.0.into()), "sigma_data"),
        (edm("rho", (-7.0).into()), "rho"),
        (edm("sigma_schedule", "even".into()), "sigma_schedule"),
        (edm("prediction_type", "sample".into()), "prediction_type"),
    ] {
        let message = read(config, None).unwrap_err();
        assert!(message.contains("dir/scheduler_config.json") && message.contains(key), "{key}: {message}");
    }
}
