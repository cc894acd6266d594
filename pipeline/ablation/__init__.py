"""Ablations: what each technique is worth on a config, by runs that differ in nothing else."""
