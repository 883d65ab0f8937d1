"""Medians, quantiles, alternating runs and the paired bootstrap. Pure functions over lists of numbers."""

import random
import statistics


def median(values):
    return statistics.median(values)


def quantile(values, share):
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def alternate(rounds, *runs):
    """Calls each of `runs` once a round, in turns, every second round backwards; returns the lists of their results.

    What disturbs the machine for a while then disturbs all of them alike, and none always comes first.
    """
    results = [[] for _ in runs]
    for number in range(rounds):
        order = list(enumerate(runs))
        for place, run in order if number % 2 == 0 else reversed(order):
            results[place].append(run(number))
    return results


def paired_ratio(ours, peer):
    """The median of the ratios of each round, and the smallest and largest."""
    ratios = [a / b for a, b in zip(ours, peer)]
    return median(ratios), min(ratios), max(ratios)


def paired_bootstrap(a, b, resamples=2000, seed=7):
    """Mean of `a - b` over the same queries, its 95 % interval, and the share of resamples in which `a` is not better.

    The last is the one-sided p value of "a is better than b" (Efron and Tibshirani, An Introduction to the Bootstrap).
    """
    differences = [x - y for x, y in zip(a, b)]
    count = len(differences)
    draw = random.Random(seed)
    means = sorted(sum(draw.choices(differences, k=count)) / count for _ in range(resamples))
    mean = sum(differences) / count
    worse = sum(m <= 0 for m in means) / resamples
    return mean, means[int(0.025 * resamples)], means[int(0.975 * resamples)], worse
