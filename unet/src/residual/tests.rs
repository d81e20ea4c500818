use super::*;

fn small() -> Residual {
    let channels = vec![8, 16];
    let down_blocks = vec![Block::Plain, Block::Attention];
    let up_blocks = vec![Block::Attention, Block::Plain];
    let config = Config { channels, down_blocks, up_blocks, norm_num_groups: Some(4), ..Config::default() };
    let mut network = Residual::new(config).unwrap();
    network.initialise(Init::PyTorch, 1);
    network
}

fn step(network: &mut Residual) {
    let x = Array4::from_shape_fn((2, 3, 8, 8), |(n, c, h, w)| (n + c + h * w) as f32 / 20.0);
    let mut grads = vec![0.0; network.params().len()];
    let loss = &mut |y: ArrayView4<'_, f32>| y.to_owned();
    network.forward_backward(x.view(), &[3.0, 5.0], &Condition::none(2), loss, &mut grads).unwrap();
}

#[test]
fn later_steps_use_the_memory_of_the_first() {
    let mut network = small();
    step(&mut network);
    step(&mut network);
    let after_two = network.pool.idle();
    assert!(after_two.0 > 0);
    for _ in 0..3 {
        step(&mut network);
        assert_eq!(network.pool.idle(), after_two);
    }
}

#[test]
fn prediction_needs_less_memory_than_training() {
    let mut network = small();
    let x = Array4::zeros((2, 3, 8, 8));
    network.predict(x.view(), &[3.0, 5.0], &Condition::none(2)).unwrap();
    let predicting = network.pool.idle().1;
    network.pool = Pool::default();
    step(&mut network);
    assert!(2 * predicting < network.pool.idle().1, "{predicting}");
}
