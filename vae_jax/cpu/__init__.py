"""What only the CPU needs: each file is one trick behind one function that the package calls."""
