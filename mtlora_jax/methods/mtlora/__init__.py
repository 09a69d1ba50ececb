"""MTLoRA and MTLoRA+: layers with low-rank branches, the fused MLP, and the method that installs them."""
