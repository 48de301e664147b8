"""What a deployment would do that was not run: expert-parallel layouts replayed from recorded routing. Needs no torch,
no GPU and no Ray; every number says whether it is exact, bounded or estimated."""
