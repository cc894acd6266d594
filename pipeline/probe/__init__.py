"""The probe: a classifier on stored features, which takes seconds where a training takes minutes."""
