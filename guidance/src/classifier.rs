//! Guidance by a classifier (FORMULAS 5.2, 5.3, 5.6; Dhariwal & Nichol 2021, section 4).
//!
//! By Bayes' rule `grad ln p(x_t | y) = grad ln p(x_t) + grad ln p(y | x_t)`. With `g = grad ln p(y | x_t)` from a classifier of
//! noisy states, and a scale `gamma`, the score becomes `s + gamma g`; the same in other predictions is
//! `eps - sigma gamma g` (Algorithm 2) and, for the mean of a reverse step with variance `sigma_q^2`, `mean + gamma sigma_q^2 g`
//! (Algorithm 1). A conditional and an unconditional model are such a classifier: `g = -(eps_c - eps_u) / sigma`.
//!
//! Each function is for one element of its tensors.

/// `s + scale g`: the score of `p(x_t) p(y | x_t)^scale` (Dhariwal & Nichol 2021, eq. 13).
///
/// $$ \nabla \log p(x_t) + \gamma \nabla \log p(y \mid x_t) $$
///
/// FORMULAS 5.2, 5.3. Verified by `classifier_guidance_is_classifier_free_guidance`.
pub fn guided_score(score: f64, gradient: f64, scale: f64) -> f64 {
    score + scale * gradient
}

/// `eps - sigma scale g` with `sigma = sqrt(1 - abar_t)` (Dhariwal & Nichol 2021, Algorithm 2, for DDIM).
///
/// FORMULAS 5.3. Verified by `guided_eps_is_the_guided_score`.
pub fn guided_eps(eps: f64, sigma: f64, gradient: f64, scale: f64) -> f64 {
    eps - sigma * scale * gradient
}

/// `mean + scale variance g` for a reverse step `N(mean, variance I)` (Dhariwal & Nichol 2021, eq. 10 and Algorithm 1):
/// the mean of `N(x; mean, variance) exp(scale g x)`, where `ln p(y | x)` is taken to be linear in `x`.
///
/// FORMULAS 5.3. Verified by `guided_mean_tilts_the_step`.
pub fn guided_mean(mean: f64, variance: f64, gradient: f64, scale: f64) -> f64 {
    mean + scale * variance * gradient
}

/// `grad ln p(y | x_t) = -(eps_c - eps_u) / sigma` with `sigma = sqrt(1 - abar_t) > 0`: the classifier that a conditional and
/// an unconditional estimate of the noise imply (FORMULAS 5.6; Ho & Salimans 2022, section 3.2).
///
/// $$ \nabla \log p(y \mid x_t) = - \frac{\varepsilon_c - \varepsilon_u}{\sqrt{1 - \bar\alpha_t}} $$
///
/// FORMULAS 5.6. Verified by `implicit_classifier_is_exact`.
pub fn implicit_gradient(eps_cond: f64, eps_uncond: f64, sigma: f64) -> f64 {
    -(eps_cond - eps_uncond) / sigma
}
