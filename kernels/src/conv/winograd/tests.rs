use super::*;
use crate::testing::numbers;

/// Caches of other sizes make other blocks, and the same results; so do passes, of which these tiles take two.
#[test]
fn bits_do_not_depend_on_the_blocks() {
    let d = ConvDims::same(3, 45, 42, 48, 80, 3);
    let (x, weight, bias) = (numbers(d.in_len(), 1), numbers(d.weight_len(), 2), numbers(d.c_out, 3));
    for &isa in Isa::available() {
        let mut filter = WinogradPanels::new(isa, PLAIN, d.c_in, d.c_out);
        filter.fill(&weight);
        let convolved = |limits| {
            let mut y = vec![0.0; d.out_len()];
            let targets = &mut [Target::overwrite(&mut y, d.c_out)];
            convolve_in_blocks(limits, &d, &[Part::plain(&x, d.c_in)], &filter, Some(Bias::of_all(&bias)), targets);
            y
        };
        let caches = [None, Some(512 << 10), Some(1 << 20), Some(2 << 20)];
        let large = convolved(block_limits(isa, None));
        let mut y = vec![0.0; d.out_len()];
        in_passes(isa, &d, &[Part::plain(&x, d.c_in)], |patches| {
            patches.convolve(&filter, Some(Bias::of_all(&bias)), &mut [Target::overwrite(&mut y, d.c_out)]);
        });
        assert!(y == large, "{isa:?}, in passes");
        for limits in caches.map(|cache| block_limits(isa, cache)).into_iter().chain([(POINTS, 1)]) {
            assert!(convolved(limits) == large, "{isa:?}, {limits:?}");
        }
    }
    let limits = [None, Some(1 << 20)].map(|cache| block_limits(Isa::Avx512, cache));
    assert_ne!(limits[0], limits[1]);
}
