"""What a coded picture tells: which layer holds how much of it, and where."""
