"""The LightningModules: distillation, and the stages that train a bundle's parts. Wiring only."""
