"""Recovery: distillation of the dense model into the pruned one."""
