using FlaSharp.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// The initial weights: linear layers and embeddings from N(0, initializer_range), biases 0. Norms, convolutions, decays and step
/// sizes keep what their layers drew, and so does Mamba's out_proj, as in Hugging Face's models.
/// </summary>
internal static class Initialization
{
    public static void Apply(CausalLM model)
    {
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        var config = model.Config;
        var residuals = config.NumHiddenLayers * (config.Names.Mlp is null ? 1 : 2);
        foreach (var (path, module) in model.named_modules())
        {
            var name = path[(path.LastIndexOf('.') + 1)..];
            if (module is Embedding embedding)
                nn.init.normal_(embedding.weight!, 0, config.InitializerRange);
            else if (module is Linear linear && name != "out_proj")
                Draw(linear.weight, linear.bias, config.InitializerRange);
            else if (module is MixedPrecisionLinear mixed && name != "dt_proj")
                Draw(mixed.Weight, mixed.Bias, config.InitializerRange);

            if (config.RescalePrenormResidual && name is ("o_proj" or "out_proj" or "down_proj"))
                ((Linear)module).weight.div_(Math.Sqrt(residuals));
        }
    }

    private static void Draw(Tensor weight, Tensor? bias, double deviation)
    {
        nn.init.normal_(weight, 0, deviation);
        if (bias is not null)
            nn.init.zeros_(bias);
    }
}
