namespace Benchmarks.Measuring;

/// <summary>A clock for intervals of a device's work.</summary>
internal interface ILaps : IDisposable
{
    /// <summary>The interval begins with what is given to the device from now on.</summary>
    void Begin();

    /// <summary>It ends when all that was given to the device so far is done.</summary>
    void End();

    /// <summary>Waits for the intervals to end; their lengths.</summary>
    double[] Milliseconds();
}
