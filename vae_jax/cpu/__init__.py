"""What only the CPU needs: each file is behind one seam, and the road does not mention it."""
