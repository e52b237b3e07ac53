"""How often the interval of the calibration error holds the true one, on confidences whose truth is known.

    python bench/calibration_interval.py 80

An answer given with confidence c is right with probability c - gap. These cells were not looked at while the rule of
the lower end was chosen; that was done on 60, 150 and 400 rows, gaps of 0, 0.03, 0.08 and 0.15, confidences from
Beta(5, 1.5).
"""

import sys

import numpy as np

from settle.evaluate import calibration

ROWS, GAPS = (100, 250), (0.0, 0.05, 0.12, -0.06)

if __name__ == "__main__":
    samples = int(sys.argv[1])
    calibration.RESAMPLES = 200
    print(" rows    gap  held  with 0  mean error  if calibrated")
    for rows in ROWS:
        for gap in GAPS:
            random = np.random.default_rng([rows, int(1000 * abs(gap)), gap < 0])
            held, with_zero, errors, chance = 0, 0, [], []
            for _ in range(samples):
                # away from the ends, where a gap cannot be had
                confidence = 0.25 + 0.65 * random.beta(2, 1, rows)
                measured = calibration.measure_calibration(confidence, random.random(rows) < confidence - gap)
                held += measured.error.contains(abs(gap))
                with_zero += measured.error.low == 0
                errors.append(measured.error.value)
                chance.append(measured.if_calibrated)
            print(
                f"{rows:>5} {gap:>6} {held / samples:>5.0%} {with_zero / samples:>7.0%} {np.mean(errors):>11.3f} "
                f"{np.mean(chance):>14.3f}",
                flush=True,
            )
