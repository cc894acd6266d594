"""FixMatch (Sohn 2020): the surest class on a weak view is the label of a strong view."""
