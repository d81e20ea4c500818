//! The equations that the library is to carry, by the numbers that rustdoc calls FORMULAS.

/// One of them.
pub struct Formula {
    pub number: &'static str,
    pub name: &'static str,
    pub equation: &'static str,
}

const fn formula(number: &'static str, name: &'static str, equation: &'static str) -> Formula {
    Formula { number, name, equation }
}

/// All of them, in order.
pub const FORMULAS: &[Formula] = &[
    formula(
        "1.1",
        "Forward step",
        "q(x_t | x_{t-1}) = N(sqrt(1 - b_t) x_{t-1}, b_t I),  a_t = 1 - b_t,  abar_t = prod a_i",
    ),
    formula(
        "1.2",
        "Marginal",
        "q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I),  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps",
    ),
    formula(
        "1.3",
        "Schedules and grids",
        "b_1..b_T: linear, scaled-linear, cosine, sqrt, sigmoid, exponential; zero-terminal-SNR rescale; Karras sigmas",
    ),
    formula(
        "1.4",
        "Views of a noise level",
        "SNR = abar / (1 - abar),  log-SNR,  EDM sigma = sqrt((1 - abar) / abar), and their inverses",
    ),
    formula(
        "2.1",
        "Posterior",
        "mu~ = [sqrt(a_t) (1 - abar_{t-1}) x_t + sqrt(abar_{t-1}) b_t x_0] / (1 - abar_t)\nb~_t = b_t (1 - abar_{t-1}) / (1 - abar_t)",
    ),
    formula("2.2", "Posterior mean from eps", "mu~ = (x_t - b_t / sqrt(1 - abar_t) eps) / sqrt(a_t)"),
    formula("2.3", "Variance of the reverse step", "sigma_q^2 in {b~_t, b_t, 1, exp(v ln b_t + (1 - v) ln b~_t)}"),
    formula(
        "2.4",
        "Predictions",
        "mean, x_0, eps, score = -eps / sqrt(1 - abar_t), v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0: any to any",
    ),
    formula("2.5", "Ancestral sampling", "x_{t-1} = mu_theta + sigma_q z,  z = 0 at t = 1"),
    formula("3.1", "Tweedie's formula", "x ~ N(mu, S):  E[mu | x] = x + S grad log p(x)"),
    formula(
        "3.2",
        "Posterior mean and score",
        "E[sqrt(abar_t) x_0 | x_t] = x_t + (1 - abar_t) grad log p_t(x_t)\nE[eps | x_t] = -sqrt(1 - abar_t) grad log p_t(x_t)",
    ),
    formula("4.1", "Variational bound and likelihood", "-log p(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0"),
    formula(
        "4.2",
        "Equal forms of a term",
        "1/(2 s^2) |mu~ - mu|^2 = 1/(2 s^2) abar_{t-1} b_t^2 / (1 - abar_t)^2 |x_0 - x_0^|^2\n                        = 1/(2 s^2) b_t^2 / ((1 - abar_t) a_t) |eps - eps^|^2",
    ),
    formula("4.3", "Objectives and weightings", "L_simple = E |eps - eps_theta|^2;  min-SNR-gamma, P2, EDM;  L_hybrid"),
    formula("5.1", "Condition vector", "embedding of t + embedding of the label; no condition is the zero vector"),
    formula("5.2", "Bayes' rule for scores", "grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)"),
    formula("5.3", "Classifier guidance", "s + gamma g;  mean + gamma sigma_q^2 g;  eps - sqrt(1 - abar_t) gamma g"),
    formula("5.4", "Classifier-free guidance", "u + gamma (c - u) = (1 + w) c - w u,  gamma = 1 + w"),
    formula(
        "5.5",
        "Negative condition, interval, rescale, thresholding, autoguidance",
        "u under a negative condition;  guided for sigma in (lo, hi];  o (phi std(o_c) / std(o) + 1 - phi)\nx_0 clipped to [-s, s] and divided by s;  D_1 + (w - 1) (D_1 - D_0)",
    ),
    formula("5.6", "Implicit classifier", "grad log p(y | x_t) = -(eps_c - eps_u) / sqrt(1 - abar_t)"),
    formula(
        "6.1",
        "DDIM",
        "x_p = sqrt(abar_p) x_0 + sqrt(1 - abar_p - s^2) eps + s z\ns = eta sqrt((1 - abar_p) / (1 - abar_t)) sqrt(1 - abar_t / abar_p)",
    ),
    formula(
        "6.2",
        "Solvers of the probability-flow ODE and SDE",
        "Euler, Heun, LMS, PNDM, DPM-Solver, UniPC: measured order of convergence",
    ),
    formula(
        "6.3",
        "Preconditioning and consistency",
        "f(x, sigma) = c_skip x + c_out F(c_in x, sigma),  f(x, sigma_min) = x",
    ),
    formula(
        "7.4",
        "Latent diffusion, CLIP",
        "z = s (E(x) - shift);  x = D(z / s + shift);  cos(u, v) = u v / (|u| |v|)",
    ),
];
