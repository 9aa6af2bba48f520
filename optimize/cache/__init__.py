"""What is kept between runs, found again by what it was made of."""
