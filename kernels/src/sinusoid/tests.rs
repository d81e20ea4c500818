use super::*;

fn assert_near(found: &[f32], exact: &[f64]) {
    assert_eq!(found.len(), exact.len());
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        assert!((f64::from(*found) - exact).abs() <= 6e-8, "element {i} is {found}, exactly {exact}");
    }
}

#[test]
fn diffusers_encoding() {
    // dim 4: frequencies 1 and 1/100; freq_shift 1 makes them 1 and 1/10000.
    let t = 3.0f64;
    let mut y = [f32::NAN; 4];
    diffusers(&[t], 4, false, 0.0, &mut y);
    assert_near(&y, &[t.sin(), (t / 100.0).sin(), t.cos(), (t / 100.0).cos()]);
    diffusers(&[t], 4, true, 0.0, &mut y);
    assert_near(&y, &[t.cos(), (t / 100.0).cos(), t.sin(), (t / 100.0).sin()]);
    diffusers(&[t], 4, false, 1.0, &mut y);
    assert_near(&y, &[t.sin(), (t / 10000.0).sin(), t.cos(), (t / 10000.0).cos()]);
}

#[test]
fn textbook_encoding_has_the_index_itself_in_the_exponent() {
    let t = 17.0f64;
    let mut y = [f32::NAN; 4];
    pos(&[t], 4, &mut y);
    assert_near(&y, &[t.sin(), (t / 10.0).cos(), (t / 100.0).sin(), (t / 1000.0).cos()]);
}

#[test]
fn several_times_odd_and_small_sizes() {
    let mut y = [f32::NAN; 10];
    diffusers(&[0.0, 2.5], 5, false, 0.0, &mut y);
    assert_eq!(y[..5], [0.0, 0.0, 1.0, 1.0, 0.0]);
    assert_near(&y[5..], &[2.5f64.sin(), 0.025f64.sin(), 2.5f64.cos(), 0.025f64.cos(), 0.0]);
    // One frequency with freq_shift 1, where the denominator is zero.
    diffusers(&[1.0; 5], 2, true, 1.0, &mut y);
    for y in y.chunks(2) {
        assert_near(y, &[1f64.cos(), 1f64.sin()]);
    }
    diffusers(&[1.0; 10], 1, false, 0.0, &mut y);
    assert_eq!(y, [0.0; 10]);
    diffusers(&[1.0], 0, false, 0.0, &mut []);
    pos(&[1.0], 0, &mut []);
    pos(&[], 3, &mut []);
}

#[test]
fn large_times_keep_their_phase() {
    let mut y = [0.0; 2];
    pos(&[999.0], 2, &mut y);
    assert_near(&y, &[999f64.sin(), 9.99f64.cos()]);
}

#[test]
#[should_panic(expected = "sinusoid: y has 3 elements, its dimensions ask for 4")]
fn lengths_are_checked() {
    pos(&[1.0, 2.0], 2, &mut [0.0; 3]);
}
