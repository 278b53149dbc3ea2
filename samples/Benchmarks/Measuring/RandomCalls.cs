using System.Diagnostics;
using System.Text.Json.Nodes;
using FlaSharp;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>Calls of ever other sizes, as a service or a training on ragged text makes them: none should be slow.</summary>
internal static class RandomCalls
{
    private const int Seed = 3;
    private const int LargestBatch = 8;
    private const int LargestPack = 8;

    /// <param name="target">Where.</param>
    /// <param name="shape">Heads, head size, and the most tokens of a call.</param>
    /// <param name="mode">Of the operation.</param>
    /// <param name="dtype">Of the inputs.</param>
    /// <param name="count">Timed calls, half of them with packed sequences.</param>
    public static JsonObject Run(Target target, GlaShape shape, LinearAttentionMode mode, ScalarType dtype, int count)
    {
        var random = new Random(Seed);
        long tokens = shape.B * shape.T;
        // Short and long, one, some and many, single and packed: sizes decide which kernels a call takes.
        foreach (long time in new[] { 1, 16, tokens })
        {
            foreach (long batch in new[] { 1, LargestBatch / 2, LargestBatch })
                Time(batch, Math.Max(1, Math.Min(time, tokens / batch)), null);
            foreach (int pack in new[] { LargestPack / 2, LargestPack })
                Time(1, time, [0, .. Enumerable.Range(1, pack - 1).Select(i => time * i / pack), time]);
        }

        int compiled = CubinCache.Default.Size().files;
        var calls = new List<(double milliseconds, string what)>();
        for (int i = 0; i < count; i++)
        {
            long batch = i % 2 == 0 ? random.Next(1, LargestBatch + 1) : 1;
            long time = random.NextInt64(1, Math.Max(1, tokens / batch) + 1);
            long[]? bounds = i % 2 == 0 ? null : Lengths(random, time);
            calls.Add((Time(batch, time, bounds),
                $"B {batch}, T {time}" + (bounds is null ? "" : $", {bounds.Length - 1} packed sequences")));
        }

        (double milliseconds, string what) slowest = calls.MaxBy(call => call.milliseconds);
        return new JsonObject
        {
            ["count"] = count,
            ["median_ms"] = Timing.Of(calls.Select(call => call.milliseconds)).Median,
            ["slowest_ms"] = slowest.milliseconds,
            ["slowest"] = slowest.what,
            ["compiled"] = CubinCache.Default.Size().files - compiled,
        };

        double Time(long batch, long time, long[]? bounds)
        {
            using DisposeScope scope = NewDisposeScope();
            using var inputs = new GlaInputs(shape with { B = batch, T = time }, dtype, target.Device);
            Tensor? cuSeqlens = bounds is null ? null : tensor(bounds);
            target.Synchronize();
            long start = Stopwatch.GetTimestamp();
            inputs.Forward(mode, cuSeqlens);
            inputs.ForwardBackward(mode, cuSeqlens);
            target.Synchronize();
            return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }
    }

    /// <summary>The bounds of packed sequences of random lengths.</summary>
    private static long[] Lengths(Random random, long tokens) =>
        [0, .. Enumerable.Range(1, random.Next(1, LargestPack)).Select(_ => random.NextInt64(0, tokens + 1)).Order(), tokens];
}
