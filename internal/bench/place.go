package bench

// placeSizes are the numbers of hosts that placement is measured at.
var placeSizes = []int{100, 1000, 5000, 100_000}
