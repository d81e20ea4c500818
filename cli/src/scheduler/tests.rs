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

#[test]
fn refusals_name_file_and_key() {
    for (config, key) in [
        (serde_json::json!({"beta_schedul": "linear"}), "beta_schedul"),
        (serde_json::json!({"beta_schedule": "laplace"}), "beta_schedule"),
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
    ] {
        let message = read(config, None).unwrap_err();
        assert!(message.contains("dir/scheduler_config.json") && message.contains(key), "{key}: {message}");
    }
}
