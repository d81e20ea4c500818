//! Any bytes as `config.json` beside weights of a few numbers: no panic, and no memory for a network that the weights are not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_checkpoint::{Dtype, ModelDir, Tensor, default_metadata, write_safetensors};
use tweedie_unet::Model;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // A first line of its own may be the scheduler's config.
    let (scheduler, config) = text.split_once("\n\n").map_or((None, &*text), |(first, rest)| (Some(first), rest));
    let mut weights = Vec::new();
    let tensors = [Tensor::f32("conv_in.weight", &[2], &[1.0, 2.0])];
    write_safetensors(&mut weights, "fuzz", &tensors, Dtype::F32, &default_metadata())
        .expect("two numbers can be written");
    let Ok(model) = ModelDir::from_memory("fuzz", config, scheduler, weights) else { return };
    let Ok(table) = Model::table(&model.config, 2) else { return };
    // Small networks are built for good.
    if table.len() < 1 << 20 {
        let network = Model::from_config(&model.config).expect("its table could be made");
        assert_eq!(network.expected(), table.entries());
        let again = Model::from_config(&network.config()).expect("what is written can be read");
        assert_eq!(again.expected(), table.entries());
    }
});
