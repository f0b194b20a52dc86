"""What only the CPU needs, each trick behind one function or option that the package uses."""
