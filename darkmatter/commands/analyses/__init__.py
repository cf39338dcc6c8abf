"""What the commands of the analyses do, one module each."""
