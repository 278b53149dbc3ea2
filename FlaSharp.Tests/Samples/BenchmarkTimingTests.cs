using Benchmarks.Measuring;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Samples;

public sealed class BenchmarkTimingTests
{
    [Fact]
    public void A_timing_is_the_median_with_its_spread()
    {
        var timing = Timing.Of(Enumerable.Range(1, 101).Select(i => (double)i).OrderByDescending(i => i % 7));
        Assert.Equal(new Timing(51, 11, 91, 101), timing);
    }

    [Theory]
    [InlineData(50, 2.5)]
    [InlineData(10, 1.3)]
    [InlineData(90, 3.7)]
    [InlineData(0, 1)]
    [InlineData(100, 4)]
    public void A_percentile_lies_between_two_values_in_proportion(double percent, double expected) =>
        Assert.Equal(expected, Timing.Percentile([1, 2, 3, 4], percent), 12);

    [Fact]
    public void One_value_is_every_percentile_and_none_is_an_error()
    {
        Assert.Equal(new Timing(3, 3, 3, 1), Timing.Of([3.0]));
        Assert.Throws<ArgumentException>(() => Timing.Of([]));
    }

    [Theory]
    [InlineData(1L << 20, 50L << 20, 64)] // tiny: at most this many
    [InlineData(10L << 20, 50L << 20, 11)]
    [InlineData(33L << 20, 50L << 20, 4)]
    [InlineData(1L << 30, 50L << 20, 2)] // large: never the same twice in a row
    public void Input_sets_together_exceed_twice_the_cache(long bytes, long cache, int expected)
    {
        int count = InputSets.Count(bytes, cache);
        Assert.Equal(expected, count);
        Assert.True(count == InputSets.Most || count * bytes > 2 * cache);
    }

    [Fact]
    public void The_floor_is_the_time_of_moving_each_tensor_once()
    {
        var floor = new ByteFloor(3e12);
        var shape = new GlaShape(1, 8192, 96, 128);
        Assert.Equal(100_663_296, shape.Elements);
        Assert.Equal(0.33554432, floor.ForwardMilliseconds(shape, ScalarType.BFloat16), 12); // 5 tensors
        Assert.Equal(0.939524096, floor.BothMilliseconds(shape, ScalarType.BFloat16), 12); // 14
        Assert.Equal(2 * 0.33554432, floor.ForwardMilliseconds(shape, ScalarType.Float32), 12);
    }

    [Fact]
    public void Every_input_set_has_its_turn_and_its_clean_up()
    {
        using var clock = new Stopclock(Target.Choose("cpu"), iterations: 20, seconds: 1000, flush: false);
        var runs = new List<int>();
        var cleaned = new List<int>();
        Timing timing = clock.Time(3, runs.Add, cleaned.Add);
        Assert.Equal(20, timing.Count);
        Assert.Equal(runs, cleaned);
        Assert.Equal([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], runs.TakeLast(20));
        Assert.True(runs.Count >= 23, $"{runs.Count} runs leave no warm-up");
    }

    [Fact]
    public void Long_runs_are_timed_less_often_but_three_times()
    {
        using var clock = new Stopclock(Target.Choose("cpu"), iterations: 20, seconds: 1, flush: false);
        Timing timing = clock.Time(1, _ => Thread.Sleep(400));
        Assert.Equal(3, timing.Count);
        Assert.InRange(timing.Median, 399, 10_000);
    }

    [Fact]
    public void A_run_that_takes_longer_than_all_may_is_timed_once_unless_only_the_first_did()
    {
        using var clock = new Stopclock(Target.Choose("cpu"), iterations: 20, seconds: 0.1, flush: false);
        int runs = 0;
        Timing timing = clock.Time(1, _ =>
        {
            runs++;
            Thread.Sleep(150);
        });
        Assert.Equal((1, 2), (timing.Count, runs));
        Assert.InRange(timing.Median, 149, 10_000);

        runs = 0;
        Assert.Equal(20, clock.Time(1, _ => Thread.Sleep(runs++ == 0 ? 150 : 0)).Count);
    }

    [Fact]
    public void Gates_are_as_in_the_benchmark_of_fla_and_no_gradient_accumulates()
    {
        using DisposeScope scope = NewDisposeScope();
        using var inputs = new GlaInputs(new GlaShape(2, 300, 2, 8), float32, CPU);
        Assert.InRange(inputs.G.min().item<float>(), -5, -2);
        Assert.InRange(inputs.G.max().item<float>(), -0.2f, 0);
        Assert.InRange(inputs.G.mean().item<float>(), -0.9f, -0.7f); // of log-sigmoid of normal values: -0.806

        inputs.ForwardBackward(LinearAttentionMode.Auto);
        Assert.Null(inputs.G.grad);
    }

    [GpuFact]
    public void A_gpu_is_timed_by_its_events()
    {
        using var clock = new Stopclock(Target.Choose("cuda"), iterations: 20, seconds: 1000, flush: true);
        using Tensor a = randn(4096, 4096, device: CUDA);
        Timing product = clock.Time(1, _ => a.matmul(a));
        Timing sum = clock.Time(1, _ => a.sum());
        Assert.Equal(20, product.Count);
        Assert.True(product.Median > 2 * sum.Median, $"a product takes {product.Median} ms, a sum {sum.Median}");
        Assert.InRange(ByteFloor.Measure(clock).BytesPerSecond, 1e11, 1e14);
    }
}
