"""Recovery: distillation of the dense parent into the pruned model."""
