"""FixMatch (Sohn 2020): the surest class on an image's weak view is the label of its strong view."""
