"""planish: adversarial robustness by local linearity: train, attack, audit."""
