"""What docs/statistics.md says between its tables."""

SHORT = """Reinforcement learning compares methods on three to ten seeds, where textbook formulas for large samples
    are wrong by a lot. Each default below was chosen by simulation with known answers: intervals at a nominal
    {level} by how often they hold the true value, tests at {alpha} by how often they find a difference where there
    is none. The table gives the default intervals' coverage for normal scores, and in brackets the lowest of all
    distributions, numbers of tasks and effects that are simulated here."""

MEAN = """The mean over seeds is what papers tabulate; its interval says where the mean over *all* seeds would
    lie. Use it for a single cell of a table, method on dataset; below two seeds there is none.

    `mean ± t(0.975, n - 1) s / sqrt(n)`, Student's, `mean_interval`. It is exact for normal scores at any n, and
    skewness costs it a little. Where a seed sometimes fails outright it falls short, as every interval must that
    sees the scores alone: of five seeds that fail with probability 0.2 none fails in {none_5} of all cells (of
    three in {none_3}), and nothing then tells that one could. Plain bootstraps of three or five values cannot reach
    beyond the scores at hand. Bootstrap-t can, but divides by a spread that is often zero: its
    median width for normal scores, in Student's, is {times} seeds."""

DIFFERENCE = """How much better one method is than another: the difference of their means over seeds. Use it
    beside every test, which says nothing about size; its interval is made by the test's own rule, so that it holds 0
    exactly where the t-test finds nothing.

    `mean d ± t(0.975, n - 1) s_d / sqrt(n)`, d the difference seed by seed, `difference`. Of methods with unlike seeds
    it is Welch's, `mean x - mean y ± t(0.975, df) sqrt(s_x² / n + s_y² / m)` with Satterthwaite's df. `correlation` is
    that of the two methods' scores over seeds, and both are nominal at 0. Above, the paired interval stays so and
    narrows, while Welch's keeps its width and covers nearly always: at five seeds and correlation 0.8 the median
    widths for normal scores are {paired} and {unpaired} standard deviations."""

IQM = """The interquartile mean is the mean of the middle half of all runs of a method, tasks and seeds
    together. Use it to sum up many tasks: one failed or one lucky run moves it little, and it varies less than a
    median.

    `IQM = mean of x_(g+1) ... x_(N-g), g = floor(N / 4)`; its interval is `IQM ± t(0.975, df) SE`,
    `stratified_bootstrap`. SE is the standard error of a bootstrap that resamples seeds within tasks, from
    residuals multiplied by `sqrt(n / (n - 1))`, without which n seeds vary too little; df is Satterthwaite's, so
    that tasks far from the middle, which the IQM does not see, lend no certainty. rliable's percentile bootstrap
    has neither correction, BCa neither, and Hesterberg's expanded percentiles, the best of the rest, cannot leave
    the range of three scores. Of one task and three seeds the IQM is the mean and the interval is Student's; of one
    task and five seeds it is the mean of three values, whose variation the bootstrap overstates: the interval is a
    little wider than it need be, and no other formula is needed. Tasks are unlike here, with centres from 0 to 8
    and standard deviations from 0.5 to 1.5, so that of four tasks only two lie in the middle. The IQM is then close
    to the mean of those two and, where seeds fail, shares the mean's trouble; two tasks that far apart are worse
    still."""

PROFILE = """A performance profile shows, for every score, which share of runs lies above it. Use it to see a
    whole distribution where one number hides a failure: a method is better throughout where its curve lies above.

    `F(τ) = 1/K Σ_k 1/n_k Σ_i [x_ki > τ]`, `performance_profile`. The band is Clopper and Pearson's, at each
    threshold by itself and not for the whole curve. It covers as often as it says where tasks are alike, and is too
    wide where they are as unlike as here, which errs on the honest side; the bootstrap's errs on the other, and has
    no width at all where every run, or none, lies above. Coverage is the mean over nine thresholds, each decile of
    the true distribution; in brackets that of the worst threshold, where Wilson's falls short."""

IMPROVEMENT = """The probability of improvement is how often a run of X beats a run of Y on the same task. Use
    it to compare two methods over tasks whose scores share no scale; it says how often, not by how much.

    `P = 1/K Σ_k U_k / (n_k m_k)`, ties half, `probability_of_improvement`; its interval holds every θ with
    `(P - θ)² ≤ z² V(θ)`, Hanley and McNeil's variance at θ. Where every run of X beats every run of Y it stays
    open, while the bootstrap's shrinks to the point 1: look at one task and two standard deviations. Where tasks
    differ in their θ it is wider than need be. The effect is how far X lies above Y, in standard deviations over
    seeds."""

TESTS = """A test says how rarely a difference of this size would come about if there were none. Use it for a
    claim that one method beats another; below three seeds nothing is called significant, whatever p is
    (`significant`).

    The default, `over_seeds`, is the paired t-test over seeds where both methods were run on the same seeds, one score
    per run: `t = mean d / (s_d / sqrt(n))`, d the difference seed by seed. Runs of one seed share the draw of guide
    tuples, the initial networks, every batch and the evaluation's start states, so that two methods' scores rise and
    fall together, and their difference varies less than either. A pair takes out what is shared. Its level holds at
    every `correlation` of the two methods' scores over seeds, and where one method varies three times as much as the
    other ("{unlike}"). Welch's test, `t = (mean x - mean y) / sqrt(s_x² / n + s_y² / m)`, takes the methods for
    independent: at five seeds and correlation 0.8 it finds a difference that is not there in {false_welch} % of cells
    instead of 5 %, and one of 1 standard deviation in {power_welch} % against {power_paired} %.

    The price of pairs is paid where there is nothing to share: at correlation 0 they lose half of the degrees of
    freedom, and at five seeds 2 standard deviations are found in {price_paired} % of cells against Welch's
    {price_welch} %. How much is shared is a matter of the dataset: in benchmarks/results/gorl_table_iv-small.parquet
    the median correlation over pairs of methods lies between 0.4 and 0.9.

    A permutation test, and Mann and Whitney's, have 20 arrangements at three seeds of each method: no p-value
    is below 0.1, so that they never find anything at 5 %."""

MISSING = """Methods with unlike seeds make no pairs. That is so where a run failed or was not made, or where one
    method's results come from elsewhere: `over_seeds` then takes all scores of both, by Welch's test, and its warning
    says so. What is lost shows below, of normal scores on seeds 0 to n - 1 against 1 to n: the seeds in common would
    make n - 1 pairs, which find more from five seeds on where scores correlate. Which seeds to leave out is not for a
    default to choose; train the missing seed instead, or hand in the common ones and say so."""

GORL = """GORL's papers test on 50 pairs: the last 10 evaluations of each of 5 seeds,
    `paired_t_over_evaluations`. Evaluations of one run share its luck, so that these are not 50 but about 5
    observations, and the test finds differences where there are none. "0.5 within runs" says that evaluations of one
    run have half of their variance in common; at 0 the test would be right. The two methods are independent here. It
    is there to compare with the papers, pairs by seed, and always carries a warning."""

MANY = """Twelve tests at 5 % find something in a third to a half of all tables without any difference. Correct
    whenever a table is searched for what is significant: `holm` for claims about single cells, `benjamini_hochberg`
    where some false ones among many may be borne.

    Holm: `p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j))`. Benjamini and Hochberg:
    `p'_(i) = min over j >= i of m p_(j) / j`. The table says how often at least one of twelve comparisons is called
    significant where none differs, with the paired test."""

COST = """Fewer seeds are paid for in width and in power: the median width of the default intervals for normal
    scores, in standard deviations over seeds (profiles and probabilities: in their own unit), and how often the paired
    test finds a true difference."""

LIMITS = """Scores have mean 0 and standard deviation 1 in every distribution: {distributions}. Every entry is
    a share of {simulations:,} simulations, so that its standard error at 0.95 is {error}; bootstraps draw
    {samples:,} resamples here and 10,000 elsewhere. Seeds are taken to be independent draws: choosing
    hyper-parameters on the same seeds, or reporting a best checkpoint, makes every number of this page too good.
    Two methods correlate by correlating what their scores are made of; of those that fail, failures are shared as often
    as the correlation says. Scores with heavier tails than these need more seeds, not another formula."""
