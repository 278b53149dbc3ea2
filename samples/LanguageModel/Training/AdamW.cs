using FlaSharp.IO;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace LanguageModel.Training;

/// <summary>
/// AdamW (Loshchilov and Hutter 2019) over one long fp32 vector that holds the master copy of every parameter: a dozen operations
/// per step however many parameters there are, fp32 state for bf16 and fp16 models, and a state that saves exactly.
/// </summary>
internal sealed class AdamW : IDisposable
{
    private static readonly string[] s_undecayed = ["A_log", "D", "dt_bias"];

    private readonly double _beta1;
    private readonly double _beta2;
    private readonly double _epsilon;
    private readonly double _decay;

    private readonly Parameter[] _parameters;
    private readonly long _decayed;
    private readonly Tensor _master;
    private readonly Tensor _gradient;
    private readonly Tensor _mean;
    private readonly Tensor _square;
    private readonly Tensor[] _masterViews;
    private readonly Tensor[] _gradientViews;

    public AdamW(nn.Module model, double beta1 = 0.9, double beta2 = 0.95, double epsilon = 1e-8, double decay = 0.1)
    {
        (_beta1, _beta2, _epsilon, _decay) = (beta1, beta2, epsilon, decay);

        // The decayed parameters come first, so that decay is one operation on a slice.
        var named = model.named_parameters().OrderBy(p => IsDecayed(p.name, p.parameter) ? 0 : 1).ToList();
        _parameters = [.. named.Select(p => p.parameter)];
        _decayed = named.Where(p => IsDecayed(p.name, p.parameter)).Sum(p => p.parameter.numel());

        using (no_grad())
        using (DisposeScope scope = NewDisposeScope())
        {
            Device device = _parameters[0].device;
            long length = _parameters.Sum(p => p.numel());
            _master = zeros(length, float32, device).DetachFromDisposeScope();
            _gradient = zeros_like(_master).DetachFromDisposeScope();
            _mean = zeros_like(_master).DetachFromDisposeScope();
            _square = zeros_like(_master).DetachFromDisposeScope();
            _masterViews = Views(_master);
            _gradientViews = Views(_gradient);
            CopyParametersToMaster();
        }
    }

    /// <summary>Updates made so far.</summary>
    public long Count { get; private set; }

    public void ZeroGradients()
    {
        using DisposeScope scope = NewDisposeScope();
        foreach (Parameter parameter in _parameters)
            parameter.grad?.zero_();
    }

    /// <summary>Collects the gradients. Returns their norm, a scalar on the device.</summary>
    /// <param name="lossScale">What the loss was multiplied by.</param>
    public Tensor GatherGradients(double lossScale = 1)
    {
        using IDisposable _ = no_grad();
        using DisposeScope scope = NewDisposeScope();
        for (int i = 0; i < _parameters.Length; i++)
        {
            if (_parameters[i].grad is Tensor gradient)
                _gradientViews[i].copy_(gradient);
        }

        if (lossScale != 1)
            _gradient.mul_(1 / lossScale);
        return _gradient.norm().MoveToOuterDisposeScope();
    }

    /// <summary>Applies the gathered gradients.</summary>
    /// <param name="learningRate">The step size.</param>
    /// <param name="norm">What <see cref="GatherGradients"/> returned.</param>
    /// <param name="clip">Gradients of a greater norm are scaled down to this one.</param>
    public void Step(double learningRate, double norm, double clip)
    {
        using IDisposable _ = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Count++;
        if (norm > clip)
            _gradient.mul_(clip / norm);

        _mean.mul_(_beta1).add_(_gradient, alpha: 1 - _beta1);
        _square.mul_(_beta2).addcmul_(_gradient, _gradient, 1 - _beta2);
        Tensor denominator = _square.sqrt().div_(Math.Sqrt(1 - Math.Pow(_beta2, Count))).add_(_epsilon);

        _master.narrow(0, 0, _decayed).mul_(1 - learningRate * _decay);
        _master.addcdiv_(_mean, denominator, -learningRate / (1 - Math.Pow(_beta1, Count)));
        for (int i = 0; i < _parameters.Length; i++)
            _parameters[i].copy_(_masterViews[i]);
    }

    public void Save(string path) => SafeTensors.Save(path, new Dictionary<string, Tensor>
    {
        ["master"] = _master,
        ["mean"] = _mean,
        ["square"] = _square,
    });

    /// <summary>Restores what <see cref="Save"/> wrote for the same model; the parameters too, from the master copy.</summary>
    public void Load(string path, long count)
    {
        using IDisposable _ = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Dictionary<string, Tensor> state = SafeTensors.Load(path);
        _master.copy_(state["master"]);
        _mean.copy_(state["mean"]);
        _square.copy_(state["square"]);
        Count = count;
        for (int i = 0; i < _parameters.Length; i++)
            _parameters[i].copy_(_masterViews[i]);
    }

    public void Dispose()
    {
        foreach (Tensor tensor in (IEnumerable<Tensor>)[_master, _gradient, _mean, _square, .. _masterViews, .. _gradientViews])
            tensor.Dispose();
    }

    /// <summary>Norms, biases and the parameters of decay and skip in Mamba are not pulled towards zero.</summary>
    private static bool IsDecayed(string name, Parameter parameter) =>
        parameter.dim() >= 2 && !s_undecayed.Contains(name.Split('.')[^1]);

    private Tensor[] Views(Tensor vector)
    {
        long start = 0;
        return Array.ConvertAll(_parameters, parameter =>
        {
            Tensor view = vector.narrow(0, start, parameter.numel()).view(parameter.shape).DetachFromDisposeScope();
            start += parameter.numel();
            return view;
        });
    }

    private void CopyParametersToMaster()
    {
        for (int i = 0; i < _parameters.Length; i++)
            _masterViews[i].copy_(_parameters[i]);
    }
}
