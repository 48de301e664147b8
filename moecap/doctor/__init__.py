"""What a node can and cannot measure, and how to enable it: `facts` and `devices` look, `judge` and its parts judge."""
